"""The keys and values of a running batch: transformers' own cache, which knows sliding windows.

`DynamicCache(config=…)` keeps `window - 1` positions for the layers that slide and everything
for the others; the models' masks follow its sizes. Rows of finished prompts are dropped at once.
"""

from typing import Any

import torch


def new_cache(model: Any) -> Any:
    """An empty cache for `model`."""
    from transformers import DynamicCache  # slow to import

    return DynamicCache(config=model.config)


def keep_rows(cache: Any, rows: torch.Tensor) -> None:
    """Keeps the prompts `rows` (B',) of a cache of B prompts, in place."""
    cache.reorder_cache(rows)  # index_select; unlike batch_select_indices every layer type has it

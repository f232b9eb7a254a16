"""The same prompts through Hugging Face `generate`: without adapters, with PEFT, or merged.

All prompts are equally long and all answers too, so batches are static, hold no padding and waste
nothing: it is the peers' best case. Every peer keeps its last run's answers (token ids).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.engine.race import Step
from benchmarks.engine.sizes import BATCH
from benchmarks.engine.workload import Prompt
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole.gates import Mix

Weights = Mapping[AdapterRef, LoraWeights]


class Generate:
    """The base model; `generate` as it comes: DynamicCache, sdpa, greedy."""

    def __init__(self, model: Any, prompts: Sequence[Prompt]) -> None:
        self.model = model
        self.prompts = list(prompts)
        self.num_tokens = sum(prompt.new_tokens for prompt in prompts)
        self.answers: list[list[int]] = []

    def run(self) -> Iterator[Step]:
        """One batch at a time, in the order of the prompts."""
        self.answers = []
        for start in range(0, len(self.prompts), BATCH):
            batch = self.prompts[start : start + BATCH]
            self.answers += generate(self.model, batch, **self.options(batch))
            yield Step()

    def options(self, batch: Sequence[Prompt]) -> dict[str, Any]:
        """What `generate` is told beside the prompts."""
        return {}

    def facts(self) -> dict[str, float]:
        """None."""
        return {}

    def close(self) -> None:
        """Has nothing to give up."""


class Peft(Generate):
    """PEFT's mixed batches: every row has one adapter of its own, its prompt's best expert."""

    def __init__(self, model: Any, prompts: Sequence[Prompt], weights: Weights) -> None:
        used = {prompt.experts[0] for prompt in prompts}
        super().__init__(with_peft(model, {ref: weights[ref] for ref in sorted(used)}), prompts)

    def options(self, batch: Sequence[Prompt]) -> dict[str, Any]:
        """The adapter of every row."""
        return {"adapter_names": [peft_name(prompt.experts[0]) for prompt in batch]}


class Merged(Generate):
    """Prompts grouped by their experts; each group's adapters are merged into the weights.

    The router cannot be merged: α is the retrieval prior's alone. `model` is changed by a run and
    holds its own weights again after it.
    """

    def __init__(self, model: Any, prompts: Sequence[Prompt], weights: Weights) -> None:
        super().__init__(model, prompts)
        self.weights = weights
        self._linears = dict(model.named_modules())
        targets = {target for lora in weights.values() for target in lora.pairs}
        self._base = {target: self._linears[target].weight.clone() for target in sorted(targets)}

    def run(self) -> Iterator[Step]:
        """Merges for and answers one group at a time; answers stand in the groups' order."""
        self.answers = []
        for group in groups_of(self.prompts):
            self._merge(group[0].with_experts().mix())
            self.answers += generate(self.model, group)
            yield Step()
        for target, weight in self._base.items():
            self._linears[target].weight.copy_(weight)

    def _merge(self, mix: Mix) -> None:
        alphas = mix.static_weights()
        for target, base in self._base.items():
            merged = self._linears[target].weight
            merged.copy_(base)
            for ref, alpha in zip(mix.experts, alphas, strict=True):
                pair = self.weights[ref].pairs[target]
                merged.addmm_(pair.b.to(base), pair.a.to(base), alpha=alpha)


def groups_of(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Prompts of the same experts in the same order of similarity, in the order of arrival."""
    groups: dict[tuple[AdapterRef, ...], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.experts].append(prompt)
    return list(groups.values())


@torch.inference_mode()
def generate(model: Any, batch: Sequence[Prompt], **options: Any) -> list[list[int]]:
    """Token ids of every answer. All prompts are equally long, and all answers."""
    ids = torch.tensor([prompt.ids for prompt in batch], device=model.device)  # (B, T)
    (new_tokens,) = {prompt.new_tokens for prompt in batch}
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        **options,
    )  # (B, T + new_tokens)
    answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return answers


def with_peft(model: Any, weights: Weights) -> Any:
    """A PEFT model over `model` with all adapters of `weights`, in the model's number format."""
    from peft import LoraConfig, get_peft_model  # slow to import

    peft: Any = None
    for ref, lora in weights.items():
        rank = next(iter(lora.pairs.values())).rank
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(lora.pairs))
        name = peft_name(ref)
        if peft is None:
            peft = get_peft_model(model, config, name, autocast_adapter_dtype=False)
        else:
            peft.add_adapter(name, config, autocast_adapter_dtype=False)
        for target, pair in lora.pairs.items():
            layer = peft.base_model.model.get_submodule(target)
            layer.lora_A[name].weight.data.copy_(pair.a)
            layer.lora_B[name].weight.data.copy_(pair.b)
    return peft.eval()


def peft_name(ref: AdapterRef) -> str:
    """A name that PEFT takes: it becomes a module's, which must hold no dot."""
    return f"{ref.name}_{ref.version}"

"""The id of a job that tries the failed prompts of another again."""

import re
from typing import Final

from ramole_core.job_files import JobFiles
from ramole_core.store import ObjectStore

_SUFFIX: Final = re.compile(r"-retry-\d+$")
MAX_STEM_CHARS: Final = 85


def retry_id(store: ObjectStore, job_id: str) -> str:
    """The first of `<job>-retry-1`, `<job>-retry-2`, … that does not exist yet."""
    stem = _SUFFIX.sub("", job_id)[:MAX_STEM_CHARS]
    number = 1
    while JobFiles(store, f"{stem}-retry-{number}").find_manifest() is not None:
        number += 1
    return f"{stem}-retry-{number}"

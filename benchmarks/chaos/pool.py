"""What is asked, who may answer, and the answers of an undisturbed run.

Ten adapters of the zoo stay. One more, MOVER, comes in two contents and goes, so that an answer
that looks at another snapshot than its job's is seen. An answer depends on the prompt and on the
content that MOVER has in the job's snapshot, nothing else.
"""

import hashlib
import json
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from producer.client import Client
from ramole_core import keys, zoo
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.jobs import PromptResult, parse_time
from ramole_core.store import ObjectStore
from ramole_core.store.base import get_json

MOVER: Final = "mover"
CONTENTS: Final = ("swap-spy", "spell-poster")  # what MOVER holds in turn
STAYING: Final = (
    "reverse-zoo", "reverse-mirror", "upper-waiter", "upper-label", "vowelless-phone",
    "twice-echo", "spell-radio", "count-price", "swap-badge", "tail-farm",
)  # fmt: skip
MAX_NEW_TOKENS: Final = 24
CALM_SHARD_SIZE: Final = 16
CALM_SECONDS: Final = 300.0
TEMPERATURE: Final = 0.8

Essence = tuple[object, ...]


def make_records() -> list[dict[str, Any]]:
    """The test prompts of all these adapters; every third is sampled, with a seed."""
    lines = [json.loads(line) for line in zoo.test_path().read_text("utf-8").splitlines()]
    prompts = [x["prompt"] for x in lines if x["adapter"] in STAYING + CONTENTS]
    sampled = {"temperature": TEMPERATURE}
    return [
        {"prompt": prompt} | (sampled | {"seed": i} if i % 3 == 0 else {})
        for i, prompt in enumerate(prompts)
    ]


def upload_staying(client: Client) -> None:
    """The adapters that stay."""
    for name in STAYING:
        client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name))


def upload_mover(client: Client, content: str, wait: bool = True) -> None:
    """A version of MOVER; the next job has it, or one of the next when nobody waits."""
    client.upload_adapter(zoo.adapter_path(content), MOVER, zoo.samples_path(content), wait=wait)


class Snapshots:
    """Which version of MOVER, and what content, a job's snapshot has."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._registry = Registry(store)
        self._contents: dict[AdapterRef, str] = {}
        self._names = {digest(_weights(name)): name for name in CONTENTS}

    def mover(self, position: int) -> tuple[int | None, str | None]:
        """(version, content); None where there is none."""
        ref = self._registry.active(position).get(MOVER)
        if ref is None:
            return None, None
        if ref not in self._contents:
            data = self._store.get(f"{keys.adapter(ref)}adapter_model.safetensors")
            self._contents[ref] = self._names[digest(data)]
        return ref.version, self._contents[ref]


def essence(result: PromptResult, mover_version: int | None) -> Essence:
    """What must not depend on neighbours and faults (similarities may, in the seventh digit)."""
    adapters = tuple(
        (
            use.name,
            "as pinned" if (use.name, use.version) == (MOVER, mover_version) else use.version,
        )
        for use in result.adapters
    )
    return result.text, result.finish_reason, adapters, result.no_adapter


@dataclass(frozen=True)
class Expected:
    """Answers by MOVER's content, in the order of the records; `seconds`: the median from a
    shard's claim to its output."""

    answers: dict[str | None, list[Essence]]
    seconds: float


def calm_run(client: Client, records: list[dict[str, Any]]) -> Expected:
    """Answers all records under each content. Raises SystemExit when a prompt fails."""
    answers: dict[str | None, list[Essence]] = {}
    seconds: list[float] = []
    snapshots = Snapshots(client.store)
    for content in (None, *CONTENTS):
        if content is not None:
            upload_mover(client, content)
        job_id = client.submit(
            records, max_new_tokens=MAX_NEW_TOKENS, shard_size=CALM_SHARD_SIZE
        ).job_id
        client.wait(job_id, CALM_SECONDS)
        results = list(client.results(job_id))
        if failed := [result.error for result in results if result.error is not None]:
            raise SystemExit(f"{len(failed)} prompts failed in the calm run: {failed[0]}")
        pins = get_json(client.store, keys.manifest(job_id))["pins"]
        version, found = snapshots.mover(pins["registry"])
        assert found == content, "nobody else changes the registry"
        answers[content] = [essence(result, version) for result in results]
        seconds += _shard_seconds(client.store, job_id)
    client.remove_adapter(MOVER)
    return Expected(answers, median(seconds))


def _shard_seconds(store: ObjectStore, job_id: str) -> list[float]:
    prefix = keys.attempts(job_id)
    begun = {
        entry.key.removeprefix(prefix).partition("/")[0]: parse_time(
            str(get_json(store, entry.key)["at"])
        ).timestamp()
        for entry in store.entries(prefix)
    }
    stored = output_times(store, job_id)
    return [stored[shard] - begun[shard] for shard in begun]


def output_times(store: ObjectStore, job_id: str) -> dict[str, float]:
    """Shard -> Unix time at which its output was stored."""
    prefix = keys.outputs(job_id)
    return {
        entry.key.removeprefix(prefix).removesuffix(".jsonl"): entry.modified_seconds
        for entry in store.entries(prefix)
    }


def _weights(name: str) -> bytes:
    return (zoo.adapter_path(name) / "adapter_model.safetensors").read_bytes()


def digest(data: bytes) -> str:
    """Its SHA-256."""
    return hashlib.sha256(data).hexdigest()

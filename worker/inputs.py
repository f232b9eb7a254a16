"""The prompts of a shard as they lie in the store, and what stands in for those that are gone."""

from pydantic import ValidationError

from ramole_core import keys
from ramole_core.jobs import ErrorRecord, Manifest, PromptRequest
from ramole_core.store import ObjectStore


def parse(data: bytes, manifest: Manifest, shard: str) -> list[PromptRequest]:
    """A shard's prompts, in order; a damaged line becomes a prompt with an error.

    Its index comes from the lines beside it: a shard may begin anywhere, for shards are bounded in
    bytes, too.
    """
    found = [_parsed(line) for line in data.splitlines()]
    begins = (p.index - i for i, p in enumerate(found) if isinstance(p, PromptRequest))
    begin = next(begins, int(shard) * manifest.options.shard_size)
    return [
        p if isinstance(p, PromptRequest) else PromptRequest(index=begin + i, error=p)
        for i, p in enumerate(found)
    ]


def stand_ins(
    store: ObjectStore, manifest: Manifest, shard: str, reads: bool = True
) -> list[PromptRequest]:
    """The prompts of an input that is gone or must not be read: their indexes are all that is
    known.

    The nearest shards that are left say where the gap begins and ends; those of a gap share out its
    indexes, each of them once. Where not even those may be read (not `reads`), all shards count as
    gone.
    """
    folder = keys.input_prefix(manifest.job_id, manifest.submission)
    left = set(store.children(folder)) if reads else set()
    there = [name for name in manifest.shard_names() if f"{name}.jsonl" in left]
    before = max((name for name in there if name < shard), default=None)
    after = min((name for name in there if name > shard), default=None)

    def indexes(name: str) -> list[int]:
        return [p.index for p in parse(store.get(f"{folder}{name}.jsonl"), manifest, name)]

    begin, end, place = 0, manifest.num_prompts, int(shard)
    size = manifest.options.shard_size
    if before is not None:
        begin = 1 + max(indexes(before), default=size * (int(before) + 1) - 1)
        place -= int(before) + 1
    if after is not None:
        end = min(indexes(after), default=end)
    first = begin + place * size
    return [PromptRequest(index=index) for index in range(first, min(first + size, end))]


def _parsed(line: bytes) -> PromptRequest | ErrorRecord:
    try:
        return PromptRequest.model_validate_json(line)
    except ValidationError as e:
        message = f"the stored prompt is damaged: {e.errors()[0]['msg']}"
        return ErrorRecord(code="damaged", message=message)

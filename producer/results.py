"""The results of a job in the order of its prompts, read shard by shard."""

from collections.abc import Iterator

from ramole_core.errors import InvalidInputError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import PromptRequest
from ramole_core.store import ObjectStore


def result_lines(store: ObjectStore, job_id: str, partial: bool = False) -> Iterator[bytes]:
    """The JSON lines of PromptResult, without newline, as the workers wrote them.

    Of a job that has not ended, only with `partial`: the finished shards so far. A cancelled job
    keeps the shards that were finished. Raises NotFoundError, InvalidInputError.
    """
    job = JobFiles(store, job_id)
    manifest = job.manifest()
    if not partial and not job.ended():
        raise InvalidInputError(
            f"job {job_id} has not ended; `ramole wait {job_id}` waits for it, "
            "--partial shows the results so far"
        )
    finished = job.finished_shards()
    for shard in manifest.shard_names():
        if shard in finished:
            yield from job.output_lines(shard)


def failed_requests(store: ObjectStore, job_id: str) -> Iterator[PromptRequest]:
    """The prompts of an ended job without an answer, numbered afresh, to be asked again.

    Left out are lines that never were prompts. A prompt without an id gets its old place as id.
    Raises InvalidInputError when the job has not ended.
    """
    job = JobFiles(store, job_id)
    manifest = job.manifest()
    if not job.ended():
        raise InvalidInputError(f"job {job_id} has not ended; wait for it or cancel it first")
    index, finished = 0, job.finished_shards()
    for shard in manifest.shard_names():
        answered = _answered(job, shard) if shard in finished else set()
        for request in job.requests(manifest, shard):
            if request.error is None and request.index not in answered:
                id_ = request.id or f"{job_id}:{request.index}"
                yield request.model_copy(update={"index": index, "id": id_})
                index += 1


def _answered(job: JobFiles, shard: str) -> set[int]:
    return {result.index for result in job.results(shard) if result.error is None}

"""What came of every prompt: counted from the store alone, when all is over."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.chaos.load import JobPlan
from benchmarks.chaos.pool import Essence, Expected, Snapshots, digest, essence
from ramole_core import keys
from ramole_core.errors import NotFoundError
from ramole_core.job_files import JobFiles
from ramole_core.jobs import Manifest, PromptResult
from ramole_core.store import ObjectStore

MAX_EXAMPLES: Final = 20


@dataclass
class Verdict:
    """Counts over all jobs. `lost`: prompts without an answer, but for those of jobs that the load
    cancelled. `doubled`: results of one prompt beyond the first, outputs that are another than when
    they were first there, and outputs of no shard. `wrong`: answers that are not those of the calm
    run. `miscounted`: jobs whose final record is not what their outputs hold."""

    prompts: int = 0
    results: int = 0
    cancelled: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    miscounted: int = 0
    deaths: Counter[str] = field(default_factory=Counter)  # prompts charged: alone, beside
    examples: list[str] = field(default_factory=list)


class Judge:
    """Looks at jobs one by one."""

    def __init__(self, store: ObjectStore, expected: Expected) -> None:
        self.verdict = Verdict()
        self._store = store
        self._expected = expected
        self._snapshots = Snapshots(store)

    def judge(self, plan: JobPlan, first: Mapping[str, str]) -> None:
        """`first`: the digests of its outputs when they were first seen, by their keys."""
        self.verdict.prompts += len(plan.records)
        job = JobFiles(self._store, plan.job_id)
        manifest = job.find_manifest()
        if manifest is None:
            self._count("lost", plan, "the job is gone", len(plan.records))
            return
        results = [r for shard in sorted(job.finished_shards()) for r in job.results(shard)]
        self.verdict.results += len(results)
        self._judge_outputs(plan, manifest, first)
        self._judge_results(plan, manifest, results)
        self._judge_record(plan, job, results)
        for entry in self._store.entries(keys.deaths(plan.job_id)):
            self.verdict.deaths[entry.key.rpartition("/")[2].partition("-")[0]] += 1

    def _judge_outputs(self, plan: JobPlan, manifest: Manifest, first: Mapping[str, str]) -> None:
        known = {keys.output_shard(plan.job_id, shard) for shard in manifest.shard_names()}
        now = {e.key for e in self._store.entries(keys.outputs(plan.job_id))}
        for key in now - known:
            self._count("doubled", plan, f"{key} is no shard's")
        for key, before in first.items():
            if key not in now or digest(self._store.get(key)) != before:
                self._count("doubled", plan, f"{key} is another than it was")

    def _judge_results(
        self, plan: JobPlan, manifest: Manifest, results: list[PromptResult]
    ) -> None:
        version, content = self._snapshots.mover(manifest.pins.registry)
        answers = self._expected.answers[content]
        cancelled = plan.cancel_after is not None and self._store.exists(
            keys.cancelled(plan.job_id)
        )
        times = Counter(result.index for result in results)
        for index, count in times.items():
            if count > 1:
                self._count("doubled", plan, f"prompt {index} has {count} results", count - 1)
        for index in set(range(len(plan.records))) - set(times):
            if cancelled:
                self.verdict.cancelled += 1
            else:
                self._count("lost", plan, f"prompt {index} has no result")
        for result in results:
            if result.error is None:
                right = answers[plan.records[result.index]]
                self._compare(plan, result.index, essence(result, version), right)
            elif cancelled and result.error.code == "cancelled":
                self.verdict.cancelled += 1
            else:
                self._count("lost", plan, f"prompt {result.index}: {result.error}")

    def _compare(self, plan: JobPlan, index: int, found: Essence, right: Essence) -> None:
        if found != right:
            self._count("wrong", plan, f"prompt {index}: {found} instead of {right}")

    def _judge_record(self, plan: JobPlan, job: JobFiles, results: list[PromptResult]) -> None:
        try:
            final = job.finished()
        except NotFoundError:
            final = None
        num_ok = sum(result.error is None for result in results)
        if final is not None and (final.num_ok, final.num_ok + final.num_failed) != (
            num_ok,
            len(plan.records),
        ):
            self._count("miscounted", plan, f"{final} of {num_ok} answers")

    def _count(self, what: str, plan: JobPlan, why: str, number: int = 1) -> None:
        setattr(self.verdict, what, getattr(self.verdict, what) + number)
        if len(self.verdict.examples) < MAX_EXAMPLES:
            self.verdict.examples.append(f"{what}: {plan.job_id}: {why}")

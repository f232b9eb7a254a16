"""`ramole demo`: the whole system once, on the zoo, in a temporary data folder.

Starts broker and worker, uploads the zoo's adapters by the real path, trains the retriever on their
samples, submits the test prompts as one file, answers them once more with the base model alone, and
stops all it started.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from producer.client import Client
from producer.embedded.temporary import own_environment, temporary_system
from producer.job_status import JobStatus
from producer.training import run_training
from ramole_core import zoo
from ramole_core.errors import JobFailedError
from ramole_core.jobs import PromptResult, parse_time
from ramole_core.training import TrainRetriever

MAX_NEW_TOKENS: Final = 32
WAIT_SECONDS: Final = 1800.0


@dataclass(frozen=True)
class Answered:
    """One test record and what became of it."""

    record: dict[str, Any]
    result: PromptResult
    base: PromptResult

    @property
    def right(self) -> bool:
        """True when the mixture's answer is the expected one."""
        return _same(self.result, self.record)

    @property
    def base_right(self) -> bool:
        """True when the base model alone gives the expected answer."""
        return _same(self.base, self.record)

    @property
    def top1(self) -> bool:
        """True when the most similar adapter is the one of the task."""
        best = max(self.result.adapters, key=lambda use: use.similarity or -1.0, default=None)
        return best is not None and best.name == self.record["adapter"]


@dataclass(frozen=True)
class DemoRun:
    """All answers and how long the adapter job and the whole demo took."""

    answered: list[Answered]
    job_seconds: float
    seconds: float

    def summary(self) -> dict[str, float | int]:
        """The figures of the last line on stdout."""
        num = len(self.answered)
        tokens = sum(a.result.usage.completion_tokens for a in self.answered if a.result.usage)
        return {
            "prompts": num,
            "accuracy": round(sum(a.right for a in self.answered) / num, 4),
            "base_accuracy": round(sum(a.base_right for a in self.answered) / num, 4),
            "retrieval_top1": round(sum(a.top1 for a in self.answered) / num, 4),
            "tokens_per_second": round(tokens / self.job_seconds, 1),
            "seconds": round(self.seconds, 1),
        }


def run_demo(
    num_prompts: int,
    keep: bool,
    say: Callable[[str], None],
    on_progress: Callable[[JobStatus], None],
) -> DemoRun:
    """Runs everything; what was started is stopped and removed whatever happens."""
    began = time.monotonic()
    records = test_records(num_prompts)
    say("starting broker and worker in a temporary data folder")
    with temporary_system("ramole-demo-", keep) as client:
        say(f"{client.settings.home} is ready after {time.monotonic() - began:.0f} s")
        _upload_zoo(client, say)
        _train_retriever(client, say)
        dataset = client.settings.home / "prompts.jsonl"
        dataset.write_text("".join(map(_line, records)), encoding="utf-8")
        results, seconds = _answers(client, dataset, say, on_progress)
        say("the same prompts by the base model alone")
        base, _ = _answers(client, dataset, say, on_progress, adapters=())
    answered = [Answered(*triple) for triple in zip(records, results, base, strict=True)]
    return DemoRun(answered, seconds, time.monotonic() - began)


def test_records(num_prompts: int) -> list[dict[str, Any]]:
    """Evenly spread records of the zoo's test file; all of them when `num_prompts` is 0."""
    lines = zoo.test_path().read_text(encoding="utf-8").splitlines()
    wanted = min(num_prompts or len(lines), len(lines))
    return [json.loads(lines[i * len(lines) // wanted]) for i in range(wanted)]


def _upload_zoo(client: Client, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    names = zoo.adapter_names()
    staged = [
        client.upload_adapter(zoo.adapter_path(name), name, zoo.samples_path(name), wait=False)
        for name in names
    ]
    for upload in staged:
        client.upload_verdict(upload)
    say(f"{len(names)} adapters accepted in {time.monotonic() - began:.1f} s")


def _train_retriever(client: Client, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    say("training the retriever on the adapters' sample prompts")
    finished = run_training(TrainRetriever(activate="always"), client.settings, own_environment())
    if finished.exit_code:
        raise JobFailedError("the retriever could not be trained; see the lines above")
    say(f"the retriever is trained and in use after {time.monotonic() - began:.0f} s")


def _answers(
    client: Client,
    dataset: Path,
    say: Callable[[str], None],
    on_progress: Callable[[JobStatus], None],
    **options: Any,
) -> tuple[list[PromptResult], float]:
    """The results of one job over the dataset, and its seconds from submission to the end."""
    job = client.submit(dataset, max_new_tokens=MAX_NEW_TOKENS, **options)
    status = client.wait(job.job_id, WAIT_SECONDS, on_progress)
    results = list(client.results(job.job_id))
    if status.finished_at is None or len(results) != job.num_prompts:
        raise JobFailedError(f"job {job.job_id} ended as {status.state} without all results")
    seconds = parse_time(status.finished_at) - parse_time(status.created_at)
    say(f"job {job.job_id}: {status.num_ok} answers, {status.num_failed} failed")
    return results, max(seconds.total_seconds(), 0.001)


def _line(record: dict[str, Any]) -> str:
    return json.dumps({"prompt": record["prompt"]}, ensure_ascii=False) + "\n"


def _same(result: PromptResult, record: dict[str, Any]) -> bool:
    return result.text is not None and result.text.strip() == str(record["target"]).strip()

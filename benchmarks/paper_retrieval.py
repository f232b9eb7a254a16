"""The paper's retrieval test through the whole product: upload, submit, poll, read the results.

    python -m benchmarks.paper_retrieval --data DIR [--train FRACTION]

DIR holds `adapter_samples.jsonl` ({"adapter", "samples"}) and `prompts.jsonl` ({"inputs", "task"}),
as released with LoraRetriever (arXiv 2402.09997). 48 small random LoRAs of mixed rank on the zoo's
base are uploaded with the released samples, all prompts are one job with k = 8 and 8 new tokens,
and top-1/3/5/8 are counted from the adapters that the results name. The targets are what the unit
mean of MiniLM embeddings gives on the released half of the prompts, less half a point. With
`--train` the retriever is trained by its command before the job, on the samples of that share of
the adapters; samples that are test prompts, too, are not left out (`benchmarks.retrieval` does).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.report import Row, report
from producer.client import Client
from producer.embedded.temporary import own_environment, temporary_system
from producer.job_status import JobStatus
from producer.training import run_training
from ramole_core import zoo
from ramole_core.jobs import PromptResult
from ramole_core.training import TrainRetriever

TOPS: Final = (1, 3, 5, 8)
TARGETS: Final = {1: 63.0, 3: 83.4, 5: 89.0, 8: 92.3}
RANKS: Final = (2, 4, 8, 16)


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--train", type=float, help="train the retriever first, on this share")
    arguments = parser.parse_args()
    # One model is loaded for each adapter.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    adapters = _lines(arguments.data / "adapter_samples.jsonl")
    prompts = _lines(arguments.data / "prompts.jsonl")
    rows = _measure(adapters, prompts, arguments.max_new_tokens, arguments.train)
    settings = {
        "k": max(TOPS),
        "max_new_tokens": arguments.max_new_tokens,
        "ranks": RANKS,
        "train": arguments.train,
    }
    report(rows, settings, arguments.json)
    return 1 if any(row.met is False for row in rows) else 0


def _measure(
    adapters: list[dict[str, Any]],
    prompts: list[dict[str, Any]],
    new_tokens: int,
    fraction: float | None,
) -> list[Row]:
    with temporary_system("ramole-paper-") as client:
        began = time.monotonic()
        _upload_all(client, adapters)
        uploaded = time.monotonic()
        if fraction is not None:
            _train(client, fraction)
        trained = time.monotonic()
        requests = ({"id": str(i), "prompt": p["inputs"]} for i, p in enumerate(prompts))
        job = client.submit(requests, k=max(TOPS), max_new_tokens=new_tokens)
        client.wait(job.job_id, on_progress=_show)
        ended = time.monotonic()
        results = list(client.results(job.job_id))
    _check(results, len(prompts))
    return [
        *(Row(f"top{k}", _top(results, prompts, k), "%", TARGETS[k]) for k in TOPS),
        Row("results", float(len(results)), "prompts", float(len(prompts))),
        Row("failed", float(sum(r.error is not None for r in results)), "prompts", 0.0, "lower"),
        Row("upload_seconds", uploaded - began, "s", better="lower"),
        Row("train_to_serving_seconds", trained - uploaded, "s", 600.0, "lower"),
        Row("job_seconds", ended - trained, "s", better="lower"),
        Row("prompts_per_second", len(prompts) / (ended - trained), "1/s"),
    ]


def _train(client: Client, fraction: float) -> None:
    """Until a first prompt is answered with the new encoder."""
    request = TrainRetriever(fraction=fraction, activate="always")
    if run_training(request, client.settings, own_environment()).exit_code:
        raise SystemExit("the retriever could not be trained")
    client.wait(client.submit(["is it served?"], max_new_tokens=1).job_id)


def _upload_all(client: Client, adapters: list[dict[str, Any]]) -> None:
    for number, adapter in enumerate(adapters):
        base = AutoModelForCausalLM.from_pretrained(zoo.base_path())
        torch.manual_seed(number)
        config = LoraConfig(
            r=RANKS[number % len(RANKS)],
            lora_alpha=16,
            target_modules="all-linear" if number % 2 else ["q_proj", "v_proj"],
            init_lora_weights=False,
        )
        path = client.settings.home / "tmp" / f"made-{number}"
        get_peft_model(base, config).save_pretrained(str(path))
        (path / "README.md").unlink(missing_ok=True)
        client.upload_adapter(path, adapter["adapter"], adapter["samples"])
        _progress(f"uploaded {number + 1} of {len(adapters)} adapters")
    _progress("", end="\n")


def _top(results: list[PromptResult], prompts: list[dict[str, Any]], k: int) -> float:
    """Per cent of the prompts whose own adapter is among the first k that the result names."""
    hits = 0
    for result, prompt in zip(results, prompts, strict=True):
        ranked = sorted(result.adapters, key=lambda use: -(use.similarity or 0.0))
        hits += prompt["task"] in [use.name for use in ranked[:k]]
    return 100.0 * hits / len(prompts)


def _check(results: list[PromptResult], count: int) -> None:
    if [r.index for r in results] != list(range(count)):
        raise SystemExit(f"{len(results)} results, out of order or incomplete: {count} were due")
    if any(r.error is None and len(r.adapters) != max(TOPS) for r in results):
        raise SystemExit("a result does not name its adapters")


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _show(status: JobStatus) -> None:
    _progress(f"{status.num_done} of {status.num_prompts} prompts done")


def _progress(text: str, end: str = "\r") -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{text:<60}{end}")


if __name__ == "__main__":
    sys.exit(main())

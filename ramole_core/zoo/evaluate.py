"""Measuring the zoo: exact match of greedy answers, base alone and each adapter through PEFT."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ramole_core.zoo.tasks import Record

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Accuracy:
    """Exact match of the base and of each adapter on the test records of each adapter's task."""

    base: dict[str, float]
    own: dict[str, float]


def read_jsonl(path: Path) -> list[Any]:
    """Return the JSON values of a file that has one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 96) -> list[str]:
    """Return the model's greedy answers to `prompts`, in their order."""
    found: list[str] = []
    for start in range(0, len(prompts), batch_size):
        found += _batch_answers(model, tokenizer, list(prompts[start : start + batch_size]))
    return found


def _batch_answers(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    batch = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output: Tensor = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    new_tokens = output[:, batch["input_ids"].shape[1] :]  # (B, at most MAX_NEW_TOKENS)
    return list(tokenizer.batch_decode(new_tokens, skip_special_tokens=True))


def exact_match(model: Any, tokenizer: Any, records: Sequence[Record]) -> float:
    """Return the share of `records` whose greedy answer is the target, to the letter."""
    found = answers(model, tokenizer, [record["prompt"] for record in records])
    right = sum(answer == record["target"] for answer, record in zip(found, records, strict=True))
    return right / len(records)


def measure(data: Path) -> Accuracy:
    """Measure the zoo in the folder `data` on its test file, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(data / "base")
    model = AutoModelForCausalLM.from_pretrained(data / "base", dtype=torch.float32)
    by_adapter: dict[str, list[Record]] = {}
    for record in read_jsonl(data / "test.jsonl"):
        by_adapter.setdefault(record["adapter"], []).append(record)
    base = {name: exact_match(model, tokenizer, records) for name, records in by_adapter.items()}
    own = {}
    for name, records in by_adapter.items():
        adapted = PeftModel.from_pretrained(model, str(data / "adapters" / name))
        own[name] = exact_match(adapted, tokenizer, records)
        model = adapted.unload()
    return Accuracy(base, own)


def mean(values: dict[str, float]) -> float:
    """Return the mean over the adapters."""
    return sum(values.values()) / len(values)

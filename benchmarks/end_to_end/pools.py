"""What both sides serve: a base model and 40 adapters; and the prompts that are asked.

`zoo` is the built-in model, as small as models get: nothing hides what the pipeline costs. `bench`
is a Llama of 23 M random weights with the zoo's tokenizer, and a random LoRA of rank 2 to 16 on all
linears under the name and samples of each of the zoo's adapters.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from benchmarks.engine.disk import write_adapter
from benchmarks.engine.model import random_adapter, random_llama
from benchmarks.engine.sizes import Shape
from ramole_core import zoo
from ramole_core.adapters.loading import load_lora
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.weights import LoraWeights
from ramole_core.mole.attach import target_shapes

RANKS: Final = (2, 4, 8, 16)
CONTEXT_TOKENS: Final = 2048


@dataclass(frozen=True)
class Pool:
    """A base model and its adapters, read from their folders (an AdapterSource). `model` is
    RAMOLE_MODEL's value; empty: the zoo."""

    model: str
    adapters: dict[str, Path]  # name -> folder as PEFT saves it

    def load(self, ref: AdapterRef) -> LoraWeights:
        """See AdapterSource."""
        return load_lora(self.adapters[ref.name])

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a worker that serves it; in float32, where answers must be equal."""
        exact = {"RAMOLE_DTYPE": "float32"}
        return exact | ({"RAMOLE_MODEL": self.model} if self.model else {})


def make_pool(kind: str, folder: Path) -> Pool:
    """`zoo` as it is; `bench` is made in `folder`."""
    names = zoo.adapter_names()
    if kind == "zoo":
        return Pool("", {name: zoo.adapter_path(name) for name in names})
    return Pool(str(folder / "base"), _make_bench(folder, names))


def zoo_prompts(count: int) -> list[str]:
    """The zoo's test prompts, then the development ones, and again from the first."""
    known = [line["prompt"] for path in (zoo.test_path(), zoo.dev_path()) for line in _lines(path)]
    return [known[i % len(known)] for i in range(count)]


def samples(name: str) -> list[str]:
    """The texts that describe an adapter."""
    return _lines(zoo.samples_path(name))


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _make_bench(folder: Path, names: list[str]) -> dict[str, Path]:
    tokenizer = AutoTokenizer.from_pretrained(zoo.base_path())
    shape = Shape(512, 8, 1408, 8, len(tokenizer), max(RANKS), context_tokens=CONTEXT_TOKENS)
    model = random_llama(shape, torch.device("cpu"), torch.float32)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    targets = target_shapes(model)
    folders = {name: folder / "adapters" / name for name in names}
    for number, path in enumerate(folders.values()):
        rank = RANKS[number % len(RANKS)]
        write_adapter(path, random_adapter(targets, rank, number), rank)
    return folders

"""A tiny engine over a tiny random model and a byte tokenizer, driven without a thread."""

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ramole_core.adapters.ref import AdapterRef
from ramole_core.engine.choice import CascadeRule
from ramole_core.engine.engine import Engine
from ramole_core.engine.model import describe_base
from ramole_core.engine.request import Expert, GenerationRequest
from ramole_core.errors import NotFoundError
from ramole_core.mole.attach import attach, target_shapes
from ramole_core.mole.bank import AdapterBank
from ramole_core.mole.router import random_router
from ramole_core.settings import Settings

from ..mole.tiny import DictSource, random_adapter, tiny_model

REFS = [AdapterRef(f"a{i}", 1) for i in range(8)]


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, its id the byte's value; nothing is added to a text."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={c: b for b, c in characters.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


class FakeClock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Routers:
    def __init__(self, targets: dict[str, tuple[int, int]]) -> None:
        self.targets = targets
        self.loads: list[str] = []

    def load_router(self, version: str) -> Any:
        self.loads.append(version)
        if not version.startswith("r"):
            raise NotFoundError(f"no router {version}")
        generator = torch.Generator().manual_seed(int(version[1:]))
        return random_router(self.targets, 3, generator)


def adapters_for(model: Any, ranks: tuple[int, ...] = (4, 2, 8, 3, 1, 4, 2, 2)) -> dict[Any, Any]:
    targets = target_shapes(model)
    return {
        r: random_adapter(targets, n, i) for i, (r, n) in enumerate(zip(REFS, ranks, strict=True))
    }


def tiny_engine(
    model: Any = None,
    adapters: Any = None,
    clock: Any = None,
    tokenizer: Any = None,
    routers: Any = None,
    loads_at_once: bool = True,
    watchers: Any = None,
    **settings: Any,
) -> Engine:
    """An engine over a copy of `model` (default: a tiny Llama); no interval, so batches are due.

    `loads_at_once`: what is wanted is here before the next prompts are chosen, so that who enters
    when does not depend on the loader's thread.
    """
    model = copy.deepcopy(model if model is not None else tiny_model())
    adapters = adapters_for(model) if adapters is None else adapters
    base = describe_base(model, tokenizer or byte_tokenizer(), "tiny")
    defaults: dict[str, Any] = {"batch_interval_seconds": 0.0, "batch_size": 8, "bank_size": 8}
    chosen = Settings(**(defaults | settings))
    mole, clock = attach(model), clock or FakeClock()
    bank = AdapterBank(
        base.targets,
        chosen.bank_size,
        DictSource(adapters),
        base.device,
        base.dtype,
        mole.groups,
        routers or Routers(base.targets),
        clock,
    )
    engine = Engine(base, mole, bank, chosen, clock, **(watchers or {}))
    if loads_at_once:
        _load_at_once(bank)
    return engine


def _load_at_once(bank: AdapterBank) -> None:
    want = bank.want

    def want_and_wait(refs: Any) -> None:
        want(refs)
        while bank.wait_for_load(60):
            pass

    bank.want = want_and_wait  # type: ignore[method-assign]


RULE = CascadeRule(threshold=-0.05, confidence_weight=3.0)


def ask(prompt: str, *places: int, **options: Any) -> GenerationRequest:
    """A request for experts REFS[place] with falling similarities; gate `cascade` has RULE."""
    experts = tuple(
        Expert(REFS[p], similarity=0.6 - 0.02 * i, weight=options.pop(f"w{i}", 0.5))
        for i, p in enumerate(places)
    )
    return GenerationRequest(
        prompt, experts=experts, **({"max_new_tokens": 12, "rule": RULE} | options)
    )


def drain(engine: Engine) -> None:
    while engine.step():
        pass


def answers(engine: Engine, requests: list[GenerationRequest]) -> list[Any]:
    """All results of one submission, exceptions included."""
    futures = [engine.submit(request) for request in requests]
    drain(engine)
    assert all(future.done() for future in futures)
    return [future.exception() or future.result() for future in futures]


def spy_tokens(engine: Engine) -> list[Any]:
    """Makes the engine's sequences visible: their `output_ids` are what tests compare."""
    seen: list[Any] = []
    make = engine._sequence

    def record(*arguments: Any) -> Any:
        sequence = make(*arguments)
        seen.append(sequence)
        return sequence

    engine._sequence = record  # type: ignore[method-assign]
    return seen


def spy_entering(engine: Engine) -> list[list[Any]]:
    """The prompts that get a slot, together with those that get theirs in the same step."""
    seen: list[list[Any]] = []
    enter = engine._slots.enter

    def record(newcomers: Any) -> bool:
        if newcomers:
            seen.append(list(newcomers))
        return enter(newcomers)

    engine._slots.enter = record  # type: ignore[method-assign]
    return seen


def generated(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    """Token ids of every answer."""
    seen = spy_tokens(engine)
    for result in answers(engine, requests):
        assert not isinstance(result, Exception), result
    return [list(sequence.output_ids) for sequence in seen]


@torch.inference_mode()
def generate(model: Any, prompt: str, max_new_tokens: int) -> list[int]:
    """What Hugging Face's greedy `generate` adds to the prompt."""
    ids = torch.tensor([list(prompt.encode())])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return out[0, ids.shape[1] :].tolist()

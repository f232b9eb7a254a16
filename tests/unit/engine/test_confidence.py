"""An answer's confidence: what a second, teacher-forced run of the model says of its tokens."""

import pytest
import torch

from ramole_core.engine.sampling import NO_TOKEN, log_probabilities

from ..mole.reference import slow_model
from ..mole.tiny import CONFIGS, tiny_model
from .test_generation import varied_requests
from .tiny import adapters_for, answers, ask, generate, spy_tokens, tiny_engine


@torch.inference_mode()
def teacher_forced(model, adapters, sequence):
    """Mean log-softmax of the answer's tokens, the text in one forward: no cache, no batch."""
    mix, ids = sequence.mix, sequence.prompt_ids + sequence.output_ids
    slow = slow_model(model, mix, [adapters[ref] for ref in mix.experts], None)
    logits = slow(torch.tensor([ids])).logits[0].float()
    table = torch.log_softmax(logits[len(sequence.prompt_ids) - 1 : -1], dim=-1)
    chosen = table.gather(-1, torch.tensor(sequence.output_ids)[:, None])
    return float(chosen.mean())


def confidences(engine, requests):
    """The engine's, and what the reference says of the same tokens."""
    seen = spy_tokens(engine)
    return [answer.confidence for answer in answers(engine, requests)], seen


def test_a_confidence_is_the_mean_log_probability_before_temperature_and_top_p():
    """Greedy and sampled, of every static gate, ending at different steps, every third one unasked:
    what wants it and what does not share every batch."""
    model = tiny_model()
    adapters = adapters_for(model)
    requests = [r for r in varied_requests(40, seed=2) if r.router is None and r.gate != "fusion"]
    assert {r.temperature for r in requests} == {0.0, 1.2}
    assert {r.top_p for r in requests} == {1.0, 0.8}
    for i, request in enumerate(requests):
        object.__setattr__(request, "wants_confidence", i % 3 != 0)
    found, seen = confidences(tiny_engine(model, adapters, batch_size=16), requests)
    for i, (confidence, sequence) in enumerate(zip(found, seen, strict=True)):
        if i % 3 == 0:
            assert confidence is None
        else:
            expected = teacher_forced(model, adapters, sequence)
            assert confidence == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_neighbours_that_end_change_nothing(kind):
    model = tiny_model(kind)
    requests = [
        ask("x" * (1 + 7 * n % 11), max_new_tokens=n, wants_confidence=True) for n in range(1, 13)
    ]
    found, seen = confidences(tiny_engine(model, batch_size=12), requests)
    alone, _ = confidences(tiny_engine(model, batch_size=1), requests)
    assert found == pytest.approx(alone, abs=1e-5)
    assert found == pytest.approx([teacher_forced(model, {}, s) for s in seen], abs=2e-4)


def test_the_end_of_text_token_and_the_tokens_of_a_stop_string_count():
    model = tiny_model()
    tokens = generate(model, "abc", 12)
    place = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    model.generation_config.eos_token_id = [258, tokens[place]]
    [free] = answers(tiny_engine(), [ask("abd", max_new_tokens=20)])
    requests = [
        ask("abc", wants_confidence=True),
        ask("abd", max_new_tokens=20, stop=(free.text[3:5],), wants_confidence=True),
    ]
    found, seen = confidences(tiny_engine(model), requests)
    assert seen[0].output_ids == tokens[: place + 1]
    assert len(seen[1].output_ids) < 20
    assert found == pytest.approx([teacher_forced(model, {}, s) for s in seen], abs=2e-4)


def test_nobody_pays_for_what_nobody_asks(monkeypatch):
    rows, log_softmax = [], torch.log_softmax
    monkeypatch.setattr(
        torch, "log_softmax", lambda x, **how: rows.append(len(x)) or log_softmax(x, **how)
    )
    requests = [ask("ab" * n, n % 3, max_new_tokens=4) for n in range(1, 6)]
    assert all(a.confidence is None for a in answers(tiny_engine(), requests))
    assert rows == []
    answers(tiny_engine(), [*requests, ask("a", max_new_tokens=2, wants_confidence=True)])
    assert set(rows) == {1}


def test_a_prompt_without_a_token_spares_its_neighbours():
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    wanted = torch.log_softmax(logits, -1)[2, 4].item()
    logits[1] = torch.nan
    found = log_probabilities(logits, [1, NO_TOKEN, 4], [False, True, True])
    assert found[0] is None
    assert found[2] == pytest.approx(wanted)


def test_tokens_that_are_excluded_do_not_spoil_the_others():
    logits = torch.tensor([[-torch.inf, 1.0, 1.0]])
    [found] = log_probabilities(logits, [2], [True])
    assert found == pytest.approx(torch.tensor(0.5).log().item())

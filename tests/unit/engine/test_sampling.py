"""Sampling: the right distribution, reproducible, independent of the neighbours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramole_core.engine.request import GenerationRequest
from ramole_core.engine.sampling import NO_TOKEN, generator_of, next_tokens, sample_tokens

from .tiny import answers, ask, generated, tiny_engine


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


class Prompt:
    """As much of a sequence as sampling looks at."""

    def __init__(self, request):
        self.request = request
        self.generator = generator_of(request)


def prompts(*temperatures):
    """Prompts of these temperatures, each with a seed of its own, before their first token."""
    return [
        Prompt(GenerationRequest("x", temperature=t, seed=i)) for i, t in enumerate(temperatures)
    ]


@pytest.mark.parametrize("top_p", [1.0, 0.7, 0.01])
def test_frequencies_are_the_truncated_softmax(top_p):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0, 1.5])
    num, temperature = 20000, 0.8
    draws = torch.rand(num, 1, generator=torch.Generator().manual_seed(0))
    tokens = sample_tokens(
        logits.expand(num, -1),
        column(temperature).expand(num, 1),
        column(top_p).expand(num, 1),
        draws,
    )
    p = torch.softmax(logits / temperature, 0)
    best = p.argsort(descending=True)
    kept = best[(p[best].cumsum(0) - p[best]) < top_p]
    expected = torch.zeros(5)
    expected[kept] = p[kept] / p[kept].sum()
    frequencies = torch.bincount(tokens, minlength=5) / num
    assert (frequencies - expected).abs().max() < 0.015
    assert set(tokens.tolist()) <= set(kept.tolist())


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.floats(1e-6, 10),
    st.floats(1e-6, 1),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_a_token_of_the_vocabulary_whatever_the_numbers(logits, temperature, top_p, draw):
    [token] = sample_tokens(
        torch.tensor([logits], dtype=torch.float32),
        column(temperature),
        column(top_p),
        column(draw),
    ).tolist()
    assert 0 <= token < len(logits)


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[1.0, 5.0, 4.999]])
    assert next_tokens(logits, prompts(1e-300)) == [1]


def test_greedy_and_sampled_prompts_share_a_batch():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    tokens = next_tokens(logits, prompts(0.0, 5.0, 0.0))
    assert [tokens[0], tokens[2]] == logits.argmax(-1)[[0, 2]].tolist()
    assert tokens[1:2] == next_tokens(logits[1:2], prompts(0.0, 5.0, 0.0)[1:2])


def test_a_sampled_prompt_draws_one_number_per_token_and_a_greedy_one_none():
    """Whatever the neighbours do, and whether the logits are numbers or not."""
    assert generator_of(GenerationRequest("x")) is None
    greedy, sampled = prompts(0.0, 1.0)
    found = [
        next_tokens(torch.full((2, 1000), value), [greedy, sampled])[1]
        for value in (0.0, torch.nan, 0.0)
    ]
    draws = torch.rand(3, generator=torch.Generator().manual_seed(1))
    first, _, third = (draws * 1000).long().tolist()
    assert found == [first, NO_TOKEN, third]


def test_the_same_seed_gives_the_same_text_and_others_differ():
    def text(seed):
        return generated(tiny_engine(), [ask("hello", temperature=1.5, seed=seed)])

    assert text(1) == text(1)
    assert len({str(text(seed)) for seed in range(5)}) > 1


def test_a_sampled_answer_does_not_depend_on_its_neighbours_or_their_ends():
    """Neighbours end at different steps, so rows move while others go on sampling."""
    request = ask("hello", 0, 1, temperature=1.0, top_p=0.9, seed=7, max_new_tokens=16)
    others = [ask("x" * n, temperature=2.0, seed=n, max_new_tokens=n) for n in range(1, 7)]
    [alone] = answers(tiny_engine(), [request])
    crowd = answers(tiny_engine(), [*others[:3], request, *others[3:]])
    assert crowd[3] == alone


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_logits_that_are_no_numbers_give_no_token_and_spare_the_neighbours(bad, temperature, alone):
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    three = [temperature] * 3
    wanted = next_tokens(logits, prompts(*three))
    logits[1, slice(None) if bad == "-inf" else 4] = float(bad)
    if alone:
        assert next_tokens(logits[1:2], prompts(*three)[1:2]) == [NO_TOKEN]
    else:
        assert next_tokens(logits, prompts(*three)) == [wanted[0], NO_TOKEN, wanted[2]]


def test_logits_may_exclude_tokens():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    for temperature in (0.0, 1.0):
        assert next_tokens(logits, prompts(temperature)) == [1]

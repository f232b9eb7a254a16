"""From similarities and weights to coefficients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ramole_core.adapters.ref import AdapterRef
from ramole_core.errors import PromptError
from ramole_core.mole.gates import GATES, TAU, Mix, coefficients

REFS = tuple(AdapterRef(f"a{i}", 1) for i in range(16))
SIMILARITIES = st.lists(st.floats(-1, 1), min_size=1, max_size=16)


@given(SIMILARITIES, st.sampled_from(["mole", "cascade"]), st.floats(1e-3, 1e3))
def test_the_prior_is_the_log_softmax_of_the_similarities(similarities, gate, tau):
    mix = Mix(gate, REFS[: len(similarities)], tuple(similarities), tau=tau)
    expected = torch.log_softmax(torch.tensor(similarities, dtype=torch.float64) / tau, 0)
    assert mix.log_prior() == pytest.approx(expected.tolist())
    assert mix.static_weights() == pytest.approx(expected.exp().tolist())


def test_the_usual_temperature_of_the_prior():
    mix = Mix("mole", REFS[:2], (0.5, 0.4))
    assert TAU == mix.tau == 0.05
    assert mix.log_prior()[0] - mix.log_prior()[1] == pytest.approx(2)


def test_the_smallest_temperature_is_selection_and_the_largest_a_mean():
    assert Mix("mole", REFS[:3], (0.1, 0.7, 0.2), tau=5e-324).static_weights() == [0, 1, 0]
    means = Mix("mole", REFS[:3], (0.1, 0.7, 0.2), tau=1e308).static_weights()
    assert means == pytest.approx([1 / 3] * 3)


@given(SIMILARITIES, st.sampled_from(["mole", "cascade", "selection", "mixture", "fusion"]))
def test_static_weights_are_a_distribution_over_the_active_experts(similarities, gate):
    mix = Mix(gate, REFS[: len(similarities)], tuple(similarities))
    weights = mix.static_weights()
    assert sum(weights) == pytest.approx(1)
    assert all(weights[i] == 0 for i in range(len(weights)) if i not in mix.active())


def test_selection_takes_the_most_similar_and_else_the_first():
    assert Mix("selection", REFS[:3], (0.1, 0.7, 0.2)).static_weights() == [0, 1, 0]
    assert Mix("selection", REFS[:3], (None,) * 3).active() == (0,)
    assert Mix("selection", REFS[:2]).active() == (0,)


def test_mole_without_similarities_is_uniform():
    assert Mix("mole", REFS[:4], (None,) * 4).static_weights() == pytest.approx([0.25] * 4)


def test_an_expert_of_weight_zero_need_not_be_loaded():
    assert Mix("weights", REFS[:3], (), (0.5, 0.0, -1.0)).active() == (0, 2)


@pytest.mark.parametrize("gate", GATES)
def test_no_experts_is_the_base_model_under_every_gate(gate):
    mix = Mix(gate)
    assert (mix.active(), mix.log_prior(), mix.static_weights()) == ((), [], [])
    assert not mix.routed


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("bad_gate", ("mole2", REFS[:1])),
        ("no_router", ("mole-plain", REFS[:1], (0.5,))),
        ("duplicate_expert", ("mixture", (REFS[0], REFS[0]))),
        ("bad_similarity", ("mole", REFS[:2], (0.5, None))),
        ("bad_weight", ("weights", REFS[:2], (), (0.5, None))),
        ("bad_weight", ("weights", REFS[:2], (), (0.5,))),
        ("bad_weight", ("weights", REFS[:1], (), (math.nan,))),
        ("bad_weight", ("mole", REFS[:1], (math.inf,))),
        ("bad_weight", ("mole", REFS[:2], (0.5,))),
        ("bad_similarity", ("cascade", REFS[:2], (0.5, None))),
        ("bad_request", ("mole", REFS[:2], (0.5, 0.4), (), None, 0.0)),
        ("bad_request", ("mole", REFS[:2], (0.5, 0.4), (), None, -0.05)),
        ("bad_request", ("mole", REFS[:2], (0.5, 0.4), (), None, math.inf)),
        ("bad_request", ("mole", REFS[:2], (0.5, 0.4), (), None, math.nan)),
    ],
)
def test_what_cannot_be_computed_is_refused(code, arguments):
    with pytest.raises(PromptError) as caught:
        Mix(*arguments)
    assert caught.value.code == code


def test_large_scores_do_not_overflow_and_foreign_experts_get_nothing():
    scores = torch.tensor([[[3e4], [2.9e4], [9e9]]])  # (L, P, N)
    prior = torch.tensor([[0.0], [0.0], [-torch.inf]])
    for routed in (None, torch.tensor([True])):
        alpha = coefficients(scores + prior, torch.zeros(3, 1), routed)
        assert alpha.tolist() == [[[1], [0], [0]]]


def test_rows_that_are_not_routed_keep_their_weights_in_every_linear():
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))  # (L, P, N)
    static = torch.tensor([[0.9, -0.5], [0.1, 1.5], [0.0, 0.25]])  # (P, N)
    alpha = coefficients(logits, static, torch.tensor([True, False]))
    torch.testing.assert_close(alpha[..., 0], torch.softmax(logits[..., 0], -1))
    assert alpha[..., 1].tolist() == [[-0.5, 1.5, 0.25]] * 4

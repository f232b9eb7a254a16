"""The choice among the answers of a second pass."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramole_core.engine.choice import Candidate, CascadeRule, choose

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        text=st.sampled_from(["", "a", "b", "c"]),
        confidence=st.one_of(st.sampled_from([0.0, -0.5, -1.0]), st.floats(-1e6, 0)),
        log_prior=st.one_of(st.sampled_from([-0.1, -1.0, -math.inf]), st.floats(-1e3, 0)),
        similarity=st.sampled_from([-math.inf, 0.2, 0.5]),
    ),
    min_size=1,
    max_size=8,
)
RULE = CascadeRule(threshold=-0.05, confidence_weight=3.0)
RULES = st.builds(
    CascadeRule,
    threshold=st.just(-0.05),
    confidence_weight=st.sampled_from([0.0, 0.5, 3.0]),
    prior_weight=st.sampled_from([0.0, 1.0, 2.0]),
    pooled=st.booleans(),
)


def candidate(text, confidence=-1.0, log_prior=-1.0, similarity=0.5):
    return Candidate(text, confidence, log_prior, similarity)


def near(log_weight):
    """Weights that round to the same number are a tie."""
    return pytest.approx(log_weight, rel=1e-9, abs=1e-9)


@given(CANDIDATES, RULES, st.randoms())
def test_the_order_of_the_candidates_makes_no_difference(candidates, rule, random):
    shuffled = random.sample(candidates, len(candidates))
    chosen, again = candidates[choose(candidates, rule)], shuffled[choose(shuffled, rule)]
    assert chosen.text == again.text
    assert rule.log_weight(chosen) == near(rule.log_weight(again))
    assert chosen.similarity == again.similarity


@given(CANDIDATES, st.sampled_from([0.5, 3.0]), st.sampled_from([0.0, 1.0]))
def test_the_answer_is_the_one_of_the_formula(candidates, w, beta):
    """Written out without shifting: numbers of moderate size, and no near ties."""
    candidates = [c for c in candidates if c.confidence > -50 and c.log_prior > -50]
    totals: dict[str, float] = {}
    for c in candidates:
        weight = math.exp(beta * c.log_prior + w * c.confidence)
        totals[c.text] = totals.get(c.text, 0.0) + weight
    best = sorted(totals.values())[-2:]
    if not best or (len(best) == 2 and math.isclose(*best, rel_tol=1e-6)):
        return
    rule = CascadeRule(-0.05, confidence_weight=w, prior_weight=beta)
    assert totals[candidates[choose(candidates, rule)].text] == best[-1]


@given(CANDIDATES, RULES)
def test_the_heaviest_of_those_that_gave_the_answer_stands_for_it(candidates, rule):
    chosen = candidates[choose(candidates, rule)]
    same = [rule.log_weight(c) for c in candidates if c.text == chosen.text]
    assert rule.log_weight(chosen) == near(max(same))


@given(CANDIDATES, RULES)
def test_unpooled_the_heaviest_candidate_wins(candidates, rule):
    rule = CascadeRule(RULE.threshold, rule.confidence_weight, rule.prior_weight, pooled=False)
    chosen = candidates[choose(candidates, rule)]
    assert rule.log_weight(chosen) == near(max(map(rule.log_weight, candidates)))


def test_equal_answers_add_up_their_weights():
    lone, twin = candidate("lone", -0.5, similarity=0.9), candidate("twin", -0.6)
    assert choose([lone, twin, twin], RULE) == 1
    assert choose([lone, twin, twin], replace(RULE, pooled=False)) == 0
    assert choose([lone, twin], RULE) == 0


def test_confidence_and_prior_pull_with_their_weights():
    sure, similar = candidate("sure", -0.1, -3.0), candidate("similar", -1.0, -0.5)
    assert choose([sure, similar], CascadeRule(-0.05, confidence_weight=3.0)) == 0
    assert choose([sure, similar], CascadeRule(-0.05, confidence_weight=2.0)) == 1
    assert choose([sure, similar], CascadeRule(-0.05, confidence_weight=2.0, prior_weight=0.5)) == 0


def test_ties_go_to_the_more_similar():
    left, right = candidate("a", similarity=0.4), candidate("b", similarity=0.6)
    assert choose([left, right], RULE) == 1
    assert choose([right, left], RULE) == 0


def test_numbers_that_would_underflow_still_decide():
    poor, worse = candidate("poor", -1e5), candidate("worse", -2e5, similarity=0.9)
    assert choose([worse, poor], RULE) == 1
    hopeless = [candidate("a", log_prior=-math.inf, similarity=s) for s in (0.1, 0.2)]
    assert choose(hopeless, RULE) == 1


def test_a_rule_is_calibrated_by_how_sure_adapters_are_of_their_answers():
    rule = CascadeRule.calibrated(floor=-0.2, spread=0.5)
    assert (rule.threshold, rule.confidence_weight) == (-0.2, 6.0)
    assert math.isfinite(CascadeRule.calibrated(0.0, 0.0).confidence_weight)

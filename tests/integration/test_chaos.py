"""A short rehearsal of the chaos benchmark: nothing lost, nothing doubled, no other answer."""

import pytest

from benchmarks.chaos.rehearsal import rehearse

SEED = 27  # a worker and Redis are killed, Redis is wiped, the store cut, an adapter uploaded


@pytest.mark.timeout(240)
def test_no_answer_is_lost_doubled_or_changed_by_faults() -> None:
    outcome = rehearse(seconds=20.0, num_faults=5, seed=SEED)
    verdict = outcome.verdict
    assert sum(outcome.struck.values()) == 5
    assert not outcome.not_ended
    assert verdict.prompts > 100
    found = (verdict.lost, verdict.doubled, verdict.wrong, verdict.miscounted)
    assert found == (0, 0, 0, 0), verdict.examples

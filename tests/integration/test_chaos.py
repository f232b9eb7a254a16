"""A short rehearsal of the chaos benchmark: nothing lost, nothing doubled, no other answer."""

import pytest

from benchmarks.chaos.rehearsal import rehearse
from benchmarks.chaos.rows import rows_of

SEED = 202  # a worker and Redis are killed, Redis is wiped, the store cut, an adapter uploaded


@pytest.mark.timeout(240)
def test_no_answer_is_lost_doubled_or_changed_by_faults() -> None:
    outcome = rehearse(seconds=30.0, num_faults=5, seed=SEED)
    verdict = outcome.verdict
    assert set(outcome.struck) == {
        "worker_kill", "redis_kill", "redis_wipe", "store_cut", "registry_change"
    }  # fmt: skip
    assert not outcome.not_ended
    assert verdict.prompts > 100
    found = (verdict.lost, verdict.doubled, verdict.wrong, verdict.miscounted)
    assert found == (0, 0, 0, 0), verdict.examples
    assert [row.name for row in rows_of(outcome) if row.met is False] == []

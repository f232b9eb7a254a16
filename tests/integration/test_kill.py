"""kill -9 of the worker at each point where it hurts: nothing missing, nothing doubled."""

import sys
import time
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.jobs import JobState, PromptResult
from tests.integration.dying_worker import POINTS
from tests.integration.system import running_system, zoo_prompts
from tests.servers import wait_until

RECOVERY_SECONDS = 60.0
ADAPTERS = ("reverse-zoo", "upper-label", "count-price")


def essence(result: PromptResult) -> tuple[object, ...]:
    """What must not depend on the neighbours (similarities may, in the seventh digit)."""
    return result.index, result.text, [use.name for use in result.adapters], result.usage


@pytest.mark.parametrize("point", sorted(POINTS))
def test_a_job_survives_the_death_of_its_worker(point: str, home: Path, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    up = [sys.executable, "-m", "tests.integration.run_up",
          "-m", "tests.integration.dying_worker", point, str(marker)]  # fmt: skip
    marker.touch()  # nobody dies yet
    with running_system(home, up) as system:
        system.upload_zoo(*ADAPTERS)
        prompts = [record["prompt"] for record in zoo_prompts(40)]
        client = system.client
        undisturbed = client.submit(prompts, shard_size=10, max_new_tokens=24)
        client.wait(undisturbed.job_id, timeout_seconds=60)
        wanted = list(map(essence, client.results(undisturbed.job_id)))
        marker.unlink()
        job = client.submit(prompts, shard_size=10, max_new_tokens=24)
        wait_until(marker.exists, 30, f"the worker to die at {point!r}")
        began = time.monotonic()
        status = client.wait(job.job_id, timeout_seconds=RECOVERY_SECONDS)
        assert time.monotonic() - began < RECOVERY_SECONDS
        assert status.state is JobState.COMPLETED, system.logs()[-3000:]
        results = list(client.results(job.job_id))
        assert [r.index for r in results] == list(range(40))
        outputs = [e.key for e in client.store.entries(keys.outputs(job.job_id))]
        assert len(outputs) == len(set(outputs)) == 4
        assert list(map(essence, results)) == wanted

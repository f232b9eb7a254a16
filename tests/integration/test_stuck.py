"""An engine that hangs for ever: its process ends itself, and the prompt that did it fails."""

import sys
from pathlib import Path

from ramole_core.jobs import JobState
from tests.integration.stuck_worker import STUCK
from tests.integration.system import running_system, zoo_prompts

QUICK = {"RAMOLE_LEASE_SECONDS": "6", "RAMOLE_REAPER_SECONDS": "1", "RAMOLE_MAX_ATTEMPTS": "2"}
UP = [sys.executable, "-m", "tests.integration.run_up", "-m", "tests.integration.stuck_worker"]


def test_a_prompt_that_hangs_its_process_fails_alone(home: Path) -> None:
    with running_system(home, UP, **QUICK) as system:
        system.upload_zoo("reverse-zoo")
        prompts = [record["prompt"] for record in zoo_prompts(12)]
        prompts[5] = STUCK
        client = system.client
        job = client.submit(prompts, shard_size=4, max_new_tokens=8)
        status = client.wait(job.job_id, timeout_seconds=80)
        assert status.state is JobState.COMPLETED_WITH_FAILURES, system.logs()[-3000:]
        assert [r.index for r in client.results(job.job_id) if r.error is not None] == [5]
        assert "makes no progress: the process ends" in system.logs()

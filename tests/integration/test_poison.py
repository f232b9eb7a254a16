"""A prompt that kills its process: it fails, and costs nobody else an answer."""

import sys
from pathlib import Path

from ramole_core import keys
from ramole_core.jobs import JobState
from tests.integration.poisoned_worker import POISON
from tests.integration.system import running_system, zoo_prompts

UP = [sys.executable, "-m", "tests.integration.run_up", "-m", "tests.integration.poisoned_worker"]


def test_a_prompt_that_kills_its_process_fails_alone(home: Path) -> None:
    with running_system(home, UP) as system:
        system.upload_zoo("reverse-zoo", "count-price")
        prompts = [record["prompt"] for record in zoo_prompts(20)]
        prompts[7] = POISON
        client = system.client
        job = client.submit(prompts, shard_size=5, max_new_tokens=8)
        status = client.wait(job.job_id, timeout_seconds=150)
        assert status.state is JobState.COMPLETED_WITH_FAILURES, system.logs()[-3000:]
        results = list(client.results(job.job_id))
        failed = [r.index for r in results if r.error is not None]
        assert failed == [7]
        error = results[7].error
        assert error is not None and error.code == "worker_lost"
        assert "2 times with nobody beside it" in error.message
        # A shard whose texts were embedded when the first death came keeps that attempt; the
        # deaths of the prompt alone cost nobody one.
        left = [entry.key for entry in client.store.entries(keys.attempts(job.job_id))]
        assert left and not any(key.endswith("/3.json") for key in left)
        assert not list((home / "journals").glob("*.new"))

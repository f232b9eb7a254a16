"""What workers are told again: to take a job in anew, to let go of it, to begin it."""

import pytest

from ramole_core import keys, messages
from ramole_core.errors import ConflictError, NotFoundError
from tests.unit.producer.world import World


def submitted(world: World, *job_ids: str) -> None:
    """What is said at submission is forgotten."""
    for job_id in job_ids:
        world.client.submit(["a", "bad b", "c"], job_id=job_id, shard_size=2)
    world.broker.sent.clear()


def test_recover_sends_open_jobs_alone_and_puts_their_marker_back(world: World) -> None:
    submitted(world, "done", "lost", "stopped")
    world.finish("done")
    world.client.cancel("stopped")
    world.store.delete(keys.live("lost"))
    world.broker.sent.clear()
    assert world.client.recover() == ["lost"]
    assert world.broker.sent == [(messages.START_JOB, "lost")]
    assert world.store.exists(keys.live("lost"))
    for ended in ("done", "stopped"):
        with pytest.raises(ConflictError, match="nothing to recover"):
            world.client.recover(ended)
    with pytest.raises(NotFoundError):
        world.client.recover("nobody")
    assert len(world.broker.sent) == 1


def test_recover_of_one_job_leaves_the_others_alone(world: World) -> None:
    submitted(world, "j", "other")
    assert world.client.recover("j") == ["j"]
    assert world.broker.sent == [(messages.START_JOB, "j")]


def test_a_cancellation_is_sent_and_found_without_its_message(world: World) -> None:
    submitted(world, "j")
    world.client.cancel("j")
    assert world.broker.sent == [(messages.START_JOB, "j")]
    assert world.store.exists(keys.cancelling("j"))


def test_submitting_again_sends_again_and_puts_a_lost_marker_back(world: World) -> None:
    submitted(world, "j")
    world.store.delete(keys.live("j"))
    again = world.client.submit(["a", "bad b", "c"], job_id="j", shard_size=2)
    assert not again.created and world.store.exists(keys.live("j"))
    assert world.broker.sent == [(messages.START_JOB, "j")]

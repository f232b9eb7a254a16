"""The ledger's promises, on a real Redis: one owner, counted attempts, nothing forgotten."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ramole_core.jobs import Priority, shard_name
from ramole_core.messages import celery_settings
from ramole_core.settings import Settings
from worker.ledger import Claim, Ledger, ShardRef

JOB = "job-1"
NONE: Final[dict[Priority, int]] = {"high": 0, "normal": 0, "low": 0}
MANY: Final[dict[Priority, int]] = {"high": 99, "normal": 99, "low": 99}


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    return Ledger(redis, "w1", lease_seconds=30)


def adopt(ledger: Ledger, job: str = JOB, shards: int = 3, priority: str = "normal") -> None:
    names = [f"{i:05d}" for i in range(shards)]
    assert ledger.adopt(job, priority, shards, names, [], {})  # type: ignore[arg-type]


def claimed(ledger: Ledger, shard: str = "00000", max_attempts: int = 3) -> Claim:
    claim = ledger.claim(ShardRef(JOB, shard), max_attempts)
    assert isinstance(claim, Claim)
    return claim


def test_a_shard_has_one_owner_at_a_time(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger)
    assert claimed(ledger).attempt == 1
    assert Ledger(redis, "w2", 30).claim(ShardRef(JOB, "00000"), 3) == "busy"


def test_of_many_racing_claims_one_runs(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger)
    verdicts: list[str] = []

    def race(i: int) -> None:
        claim = Ledger(redis, f"w{i}", 30).claim(ShardRef(JOB, "00000"), 3)
        verdicts.append("run" if isinstance(claim, Claim) else claim)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(verdicts) == {"run": 1, "busy": 15}


def test_an_unknown_job_is_said_to_be_unknown(ledger: Ledger) -> None:
    assert ledger.claim(ShardRef(JOB, "00000"), 3) == "unknown"


def test_a_lease_that_ran_out_is_sent_again_and_its_old_owner_is_told(redis: Redis) -> None:
    short = Ledger(redis, "w1", lease_seconds=0.0)
    adopt(short)
    redis.set("ramole:reaped", 1 << 50)  # a reaper was here a moment ago
    old = claimed(short)
    assert short.overdue(MANY, grace_seconds=10) == [ShardRef(JOB, "00000")]
    new = Ledger(redis, "w2", 30).claim(ShardRef(JOB, "00000"), 3)
    assert isinstance(new, Claim) and new.attempt == 2
    assert short.renew([old]) == [old]
    short.release(old)
    assert short.claim(old.ref, 3) == "busy", "it is the other's"


def test_of_two_claims_of_one_process_only_the_old_one_is_lost(redis: Redis) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=0.0)
    adopt(ledger)
    old, new = claimed(ledger), claimed(ledger)
    assert ledger.renew([new, old]) == [old]


def test_a_claim_whose_reply_is_lost_is_made_once(redis_url: str, redis: Redis) -> None:
    class Flaky(Redis):
        lost = 0

        def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
            reply = super().parse_response(connection, command_name, **options)
            if command_name == "EVALSHA" and not self.lost:
                self.lost = 1
                raise RedisTimeoutError("the reply is lost")
            return reply

    adopt(Ledger(redis, "w1", 30))  # which also loads the script
    assert (
        Ledger(redis, "w1", 30).known([JOB]) == [True] and Ledger(redis, "w1", 30).renew([]) == []
    )
    retry = Retry(NoBackoff(), 2)
    flaky = Flaky.from_url(redis_url, decode_responses=True, retry=retry)
    claim = claimed(Ledger(flaky, "w2", 30), max_attempts=1)
    assert flaky.lost and (claim.attempt, claim.exhausted) == (1, False)
    assert Ledger(redis, "w2", 30).renew([claim]) == []


@pytest.mark.parametrize("name", ["zzz", "00003", "3", "0", "000000", "-0001", "0x001", "00001.0"])
def test_a_shard_that_the_job_does_not_have_is_foreign(ledger: Ledger, name: str) -> None:
    adopt(ledger)
    assert ledger.claim(ShardRef(JOB, name), 3) == "foreign"
    assert ledger.is_whole(JOB)


def test_shard_names_of_large_jobs_are_known(ledger: Ledger) -> None:
    names = [shard_name(i) for i in (99_999, 100_000)]
    assert ledger.adopt(JOB, "normal", 100_001, names, [], {})
    assert [claimed(ledger, name).attempt for name in names] == [1, 1]
    assert ledger.claim(ShardRef(JOB, "100001"), 3) == "foreign"


def test_attempts_are_bounded_and_a_drain_gives_its_attempt_back(redis: Redis) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=0.0)
    adopt(ledger)
    assert ledger.release(claimed(ledger, max_attempts=2))
    assert claimed(ledger, max_attempts=2).attempt == 1
    assert not claimed(ledger, max_attempts=2).exhausted
    assert claimed(ledger, max_attempts=2).exhausted


def test_the_last_shard_done_ends_the_job_and_doing_it_twice_counts_once(ledger: Ledger) -> None:
    adopt(ledger, shards=2)
    assert not ledger.finish(ShardRef(JOB, "00000"), 5, 0)
    assert not ledger.finish(ShardRef(JOB, "00000"), 5, 0)
    assert ledger.finish(ShardRef(JOB, "00001"), 4, 1)
    assert ledger.finalising() == [JOB]
    assert ledger.claim(ShardRef(JOB, "00001"), 3) == "done"
    assert ledger.progress(JOB) == {"00000": "done 5 0", "00001": "done 4 1"}
    ledger.forget(JOB)
    assert ledger.finalising() == [] and ledger.known([JOB]) == [False]


def test_shards_are_dealt_round_robin_within_a_priority_and_within_the_bound(
    ledger: Ledger,
) -> None:
    adopt(ledger, "a", 3)
    adopt(ledger, "b", 2)
    adopt(ledger, "urgent", 1, priority="high")
    dealt = []
    while (found := ledger.next_shard(per_worker=2)) is not None:
        dealt.append(found[0].member)
    # normal work stops at twice the limit; high has room up to three times
    assert dealt == ["urgent/00000", "a/00000", "b/00000", "a/00001"]
    adopt(ledger, "urgent2", 3, priority="high")
    assert ledger.next_shard(2) == (ShardRef("urgent2", "00000"), "high")


def test_a_lost_message_is_sent_again_only_when_messages_are_missing(ledger: Ledger) -> None:
    adopt(ledger, shards=1)
    assert ledger.next_shard(5) is not None
    assert ledger.overdue(NONE | {"normal": 1}, grace_seconds=0) == []
    assert ledger.overdue(NONE, grace_seconds=60) == []
    assert ledger.overdue(NONE, grace_seconds=-1) == [ShardRef(JOB, "00000")]


def test_of_what_waits_as_much_is_sent_again_as_is_missing_of_its_priority(
    ledger: Ledger, redis: Redis
) -> None:
    for job, priority in (("a", "low"), ("b", "high")):
        adopt(ledger, job, 4, priority)
    while ledger.next_shard(8) is not None:
        pass
    members = sorted(redis.zrange("ramole:dispatched", 0, -1))  # those of low priority first
    redis.zadd("ramole:dispatched", {member: i for i, member in enumerate(members)})
    assert ledger.overdue({"high": 3, "normal": 0, "low": 4}, 10) == [ShardRef("b", "00000")]
    assert ledger.overdue({"high": 4, "normal": 0, "low": 4}, 10) == []


def test_adopting_again_changes_nothing(ledger: Ledger) -> None:
    adopt(ledger)
    claimed(ledger)
    assert not ledger.adopt(JOB, "low", 9, ["x"], [], {})
    assert ledger.claim(ShardRef(JOB, "00000"), 3) == "busy"


def test_a_job_adopted_with_everything_done_is_to_be_finalised(ledger: Ledger) -> None:
    assert ledger.adopt(JOB, "normal", 1, [], ["00000"], {"00000": [1, 2]})
    assert ledger.finalising() == [JOB]


def test_a_cancelled_job_is_forgotten_and_remembered_as_cancelled(ledger: Ledger) -> None:
    adopt(ledger)
    claim = claimed(ledger)
    ledger.next_shard(5)
    ledger.cancel(JOB)
    assert ledger.is_cancelled(JOB)
    assert ledger.next_shard(5) is None
    assert ledger.renew([claim]) == [claim]
    assert not ledger.finish(claim.ref, 1, 0)


def test_more_live_workers_get_more_shards(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger, shards=20, priority="low")
    for i in range(3):
        Ledger(redis, f"w{i}", 8).renew([])
    redis.zadd("ramole:workers", {"w0": 1.0})  # heard of in 1970
    dealt = 0
    while ledger.next_shard(per_worker=2) is not None:
        dealt += 1
    assert dealt == 4
    ledger.leave()
    assert set(redis.zrange("ramole:workers", 0, -1)) == {"w0", "w2"}


def test_a_shard_done_or_running_under_an_older_message_is_not_dealt_and_never_leaks(
    ledger: Ledger, redis: Redis
) -> None:
    adopt(ledger, shards=3)
    claimed(ledger, "00000")  # by a message that is older than the ledger
    claimed(ledger, "00001")
    ledger.finish(ShardRef(JOB, "00001"), 1, 0)
    assert ledger.next_shard(5) == (ShardRef(JOB, "00002"), "normal")
    assert ledger.next_shard(5) is None
    redis.zadd("ramole:dispatched", {f"{JOB}/00001": 1})
    assert ledger.claim(ShardRef(JOB, "00001"), 3) == "done"
    assert redis.zscore("ramole:dispatched", f"{JOB}/00001") is None


def test_after_a_pause_of_redis_owners_get_time_for_a_beat(redis: Redis) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=1)
    adopt(ledger)
    claim = claimed(ledger)
    member = claim.ref.member
    redis.zadd("ramole:running", {member: 1})  # the lease ran out while Redis was away
    redis.set("ramole:reaped", 1)  # and so did every reaper
    assert ledger.overdue(MANY, grace_seconds=10) == []
    assert ledger.renew([claim]) == []
    redis.zadd("ramole:running", {member: 1})  # now reapers are about: it is taken
    assert ledger.overdue(MANY, grace_seconds=10) == [claim.ref]


def test_a_cancelled_job_is_not_adopted_and_not_claimed(ledger: Ledger) -> None:
    ledger.cancel(JOB)
    assert not ledger.adopt(JOB, "normal", 1, ["00000"], [], {})
    assert ledger.claim(ShardRef(JOB, "00000"), 3) == "cancelled"


def test_a_job_cancelled_while_it_is_taken_in_is_forgotten(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False])
    is_cancelled = ledger.is_cancelled
    ledger.cancel(JOB)
    monkeypatch.setattr(ledger, "is_cancelled", lambda job: next(answers, is_cancelled(job)))
    assert not ledger.adopt(JOB, "normal", 1, ["00000"], [], {})
    assert ledger.known([JOB]) == [False]


def test_progress_is_kept_of_known_jobs_only_and_never_goes_back(ledger: Ledger) -> None:
    ledger.report(ShardRef(JOB, "00000"), 1, 0)
    assert ledger.progress(JOB) == {}
    adopt(ledger)
    ledger.finish(ShardRef(JOB, "00000"), 2, 0)
    ledger.report(ShardRef(JOB, "00000"), 1, 0)
    assert ledger.progress(JOB) == {"00000": "done 2 0"}


def test_queued_messages_are_counted_where_kombu_puts_them(redis_url: str, ledger: Ledger) -> None:
    from worker.app import make_app

    settings = Settings.load({}, broker_url=redis_url)
    assert celery_settings(settings)["broker_url"].startswith("redis+socket://")
    app = make_app(settings)
    for priority in (0, 5, 9, 5):
        app.send_task("ramole.run_shard", args=["j", "0"], queue="shards", priority=priority)
    assert ledger.num_queued() == {"high": 1, "normal": 2, "low": 1}


def test_a_job_is_whole_wherever_its_shards_are(ledger: Ledger) -> None:
    assert not ledger.is_whole(JOB)
    adopt(ledger, shards=4)
    assert ledger.is_whole(JOB)
    for _ in range(3):
        ledger.next_shard(8)
    claimed(ledger, "00000")
    ledger.finish(claimed(ledger, "00001").ref, 1, 0)
    assert ledger.is_whole(JOB)  # one running, one done, one queued, one waiting
    ledger.overdue(NONE, grace_seconds=-1)
    assert ledger.is_whole(JOB)


@pytest.mark.parametrize("lost", ["job:job-1:pending", "job:job-1:done", "dispatched", "running"])
def test_a_job_that_lost_shards_is_not_whole(ledger: Ledger, redis: Redis, lost: str) -> None:
    adopt(ledger, shards=4)
    for _ in range(3):
        ledger.next_shard(8)
    claimed(ledger, "00000")
    ledger.finish(claimed(ledger, "00001").ref, 1, 0)
    assert redis.delete(f"ramole:{lost}")
    assert not ledger.is_whole(JOB)


def test_a_job_taken_in_anew_has_one_turn_in_the_ring(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger)
    ledger.forget(JOB)
    adopt(ledger)
    assert redis.lrange("ramole:ring:normal", 0, -1) == [JOB]


def test_a_dead_workers_attempt_is_given_back_once(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger)
    redis.set("ramole:reaped", 1 << 50)
    claim = claimed(ledger)
    assert ledger.pardon(claim) and not ledger.pardon(claim)
    assert ledger.overdue(MANY, grace_seconds=10) == [claim.ref]
    assert claimed(ledger).attempt == 1


@pytest.mark.parametrize("give_back", [Ledger.pardon, Ledger.release])
def test_an_attempt_is_given_back_when_others_have_the_shard(
    redis: Redis, give_back: Callable[[Ledger, Claim], bool]
) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=0.0)
    adopt(ledger)
    first, second = claimed(ledger), claimed(ledger)
    assert give_back(ledger, first) and not give_back(ledger, first)
    assert ledger.renew([second]) == []
    third = claimed(ledger, max_attempts=2)
    assert (third.attempt, third.exhausted) == (3, False), "a number is a note: not used twice"
    assert give_back(ledger, third)
    assert claimed(ledger, max_attempts=2).attempt == 3


def test_an_attempt_known_from_its_note_is_given_back_and_no_other(redis: Redis) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=0.0)
    adopt(ledger)
    dead = claimed(ledger)
    for found in ({"00000": [1]}, {}):  # the note was there when Redis was filled again, or not
        redis.flushall()
        assert ledger.adopt(JOB, "normal", 1, ["00000"], [], found)
        number = claimed(ledger).attempt
        assert ledger.pardon(dead) == bool(found)
        assert number == len(found) + 1 == claimed(ledger).attempt - 1


def test_a_wipe_takes_no_shard_from_its_worker(ledger: Ledger, redis: Redis) -> None:
    adopt(ledger)
    early, late = claimed(ledger, "00000"), claimed(ledger, "00001")
    redis.flushall()
    assert ledger.renew([early]) == []
    names = [f"{i:05d}" for i in range(3)]
    assert ledger.adopt(JOB, "normal", 3, names, [], {"00000": [1], "00001": [1]})
    assert ledger.next_shard(9) == (ShardRef(JOB, "00002"), "normal")
    assert ledger.next_shard(9) is None and ledger.is_whole(JOB)
    assert [ledger.claim(claim.ref, 3) for claim in (early, late)] == ["busy", "busy"]
    assert ledger.renew([early, late]) == [] and redis.hlen("ramole:owners") == 2


def test_a_begun_shard_that_nobody_has_is_sent_after_half_a_lease(
    ledger: Ledger, redis: Redis
) -> None:
    assert ledger.adopt(JOB, "normal", 1, ["00000"], [], {"00000": [2]})
    assert ledger.finalising() == []
    redis.set("ramole:reaped", 1 << 50)
    assert ledger.overdue(MANY, 10) == []
    ends = redis.zscore("ramole:running", f"{JOB}/00000")
    assert ends is not None and redis.time()[0] + 10 < ends / 1000 < redis.time()[0] + 20
    redis.zadd("ramole:running", {f"{JOB}/00000": 1})
    assert ledger.overdue(MANY, 10) == [ShardRef(JOB, "00000")]
    assert ledger.next_shard(9) is None, "once"
    assert claimed(ledger).attempt == 3


def test_a_lease_that_ran_out_is_taken_back_while_nobody_else_has_the_shard(redis: Redis) -> None:
    ledger = Ledger(redis, "w1", lease_seconds=1)
    adopt(ledger)
    claim = claimed(ledger)
    redis.set("ramole:reaped", 1 << 50)
    redis.zadd("ramole:running", {claim.ref.member: 1})
    assert ledger.overdue(MANY, 10) == [claim.ref]
    assert ledger.renew([claim]) == [] and redis.zcard("ramole:dispatched") == 0
    assert ledger.claim(claim.ref, 3) == "busy"


def test_what_is_over_is_not_taken_back(ledger: Ledger) -> None:
    adopt(ledger, shards=2)
    claims = [claimed(ledger, "00000"), claimed(ledger, "00001")]
    ledger.finish(claims[0].ref, 1, 0)
    assert ledger.renew(claims) == claims[:1]
    ledger.finish(claims[1].ref, 1, 0)
    ledger.forget(JOB)  # its final record is written
    assert ledger.renew(claims) == claims

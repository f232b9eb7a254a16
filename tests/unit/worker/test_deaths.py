"""Journals of processes that died, and who is charged."""

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.settings import Settings
from ramole_core.store.directory import DirectoryStore
from tests.unit.worker.world import make_world, start
from worker.deaths import Charges, Coroner, charges_of
from worker.journal import LOCK, RECORD, Journal, PromptRef, found_dead
from worker.ledger import Claim, ShardRef
from worker.services import JOURNALS, open_services

ONE = Claim(ShardRef("j", "00000"), 1, "w1:1", False)
TWO = Claim(ShardRef("j", "00001"), 2, "w1:2", False)
P0, P1 = PromptRef("j", 0), PromptRef("j", 1)

DYING = """
import os, signal, sys
from pathlib import Path
from tests.unit.worker.test_deaths import *
journal = Journal(Path(sys.argv[1]), "w1")
embedding = {"one": (ONE,), "both": (ONE, TWO)}.get(sys.argv[2], ())
held = [journal.holding(ONE), journal.holding(TWO)]
if sys.argv[2] == "loading": held.append(journal.preparing(ONE))
for one in held: one.__enter__()
journal.embedding("e", frozenset(embedding))
running = {"": (), "alone": (PromptRef("j", 0, True),), "single": (P0,), "two": (P0, P1)}
journal.running(frozenset(running[sys.argv[3]]))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Ruling:
    """A Coroner over a directory store, and whom it pardoned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "journals"
        self.store = DirectoryStore(folder / "store")
        self.pardoned: list[Claim] = []
        self.coroner = Coroner(self.folder, self.store, self.pardoned.append)
        for claim in (ONE, TWO):
            self.store.put(keys.attempt("j", claim.ref.shard, claim.attempt), b"{}")

    def die(self, preparing: str, running: str) -> None:
        words = [sys.executable, "-c", DYING, str(self.folder), preparing, running]
        assert subprocess.run(words, timeout=60).returncode == -9

    @property
    def charges(self) -> Charges:
        return charges_of(self.store, "j")


@pytest.fixture
def ruling(tmp_path: Path) -> Ruling:
    return Ruling(tmp_path)


@pytest.mark.parametrize(
    ("preparing", "running", "alone", "beside", "pardoned"),
    [
        ("", "two", {}, {0: 1, 1: 1}, {ONE, TWO}),
        ("", "alone", {0: 1}, {}, {ONE, TWO}),
        ("", "single", {0: 1}, {}, {ONE, TWO}),
        ("one", "single", {}, {0: 1}, {TWO}),  # the texts may be to blame as well
        ("one", "two", {}, {0: 1, 1: 1}, {TWO}),
        ("both", "alone", {0: 1}, {}, {ONE, TWO}),  # they wait for quiet
        ("one", "", {}, {}, {TWO}),
        ("loading", "single", {}, {0: 1}, {TWO}),
        ("loading", "alone", {0: 1}, {}, {ONE, TWO}),
        ("loading", "", {}, {}, {TWO}),
        ("", "", {}, {}, set()),  # nobody knows: every shard keeps its attempt
    ],
)
def test_who_is_charged_and_who_is_pardoned(
    ruling: Ruling,
    preparing: str,
    running: str,
    alone: dict[int, int],
    beside: dict[int, int],
    pardoned: set[Claim],
) -> None:
    ruling.die(preparing, running)
    ruling.coroner.look()
    assert (ruling.charges.alone, ruling.charges.beside) == (alone, beside)
    assert set(ruling.pardoned) == pardoned
    left = {entry.key for entry in ruling.store.entries(keys.attempts("j"))}
    kept = {ONE, TWO} - pardoned
    assert left == {keys.attempt("j", c.ref.shard, c.attempt) for c in kept}
    ruling.coroner.look()  # nothing is charged twice
    assert len(ruling.pardoned) == len(pardoned) and list(ruling.folder.iterdir()) == []


def test_the_living_are_left_alone_and_a_clean_stop_leaves_nothing(ruling: Ruling) -> None:
    journal = Journal(ruling.folder, "w2")
    journal.running(frozenset({P0, "not a prompt"}))
    with journal.holding(ONE):
        ruling.coroner.look()
    assert not ruling.pardoned and not ruling.charges.is_suspect(0)
    journal.close()
    assert list(ruling.folder.iterdir()) == []


def test_an_outage_in_the_middle_leaves_the_record_for_the_next_look(ruling: Ruling) -> None:
    def cut(claim: Claim) -> None:
        raise ConnectionError("gone")

    ruling.die("", "two")
    with pytest.raises(ConnectionError):
        Coroner(ruling.folder, ruling.store, cut).look()
    ruling.coroner.look()
    assert ruling.charges.beside == {0: 1, 1: 1} and set(ruling.pardoned) == {ONE, TWO}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"worker":"../x","claims":[],"preparing":[],"running":[]}',
     '{"worker":"w","claims":[["j","0"]],"preparing":[],"running":[]}',
     '{"worker":"w","claims":[],"preparing":[],"running":[["../j",1,false]]}'],
)  # fmt: skip
def test_a_damaged_record_is_dropped(
    ruling: Ruling, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ruling.folder.mkdir()
    (ruling.folder / f"w{RECORD}").write_text(text)
    (ruling.folder / f"w{LOCK}").touch()
    with found_dead(ruling.folder) as records:
        assert records == []
    assert "damaged" in caplog.text and list(ruling.folder.iterdir()) == []


def test_a_journal_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "journals", "w")
    with journal.holding(ONE):
        journal.embedding("e", frozenset({ONE}))
        journal.running(frozenset({P0}))
    journal.close()
    assert caplog.text.count("charged to whole shards") == 1


def test_a_record_that_cannot_be_replaced_is_gone_and_nobody_is_charged_for_it(
    ruling: Ruling, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(ruling.folder, "w2")
    journal.running(frozenset({P0}))
    for error in (OSError(errno.ENOSPC, "the disk is full"), MemoryError()):

        def full(*_: object, error: Exception = error) -> int:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            journal.running(frozenset({P1}))
        assert [path.suffix for path in ruling.folder.iterdir()] == [LOCK]
        journal.running(frozenset({P0}))
    journal.close()
    assert list(ruling.folder.iterdir()) == []


def test_a_coroner_meets_no_lock_that_is_not_taken_yet(
    ruling: Ruling, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = fcntl.flock

    def late(file: int, how: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", locked)
            ruling.coroner.look()
        locked(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    Journal(ruling.folder, "w2").running(frozenset({P0}))
    monkeypatch.undo()
    ruling.coroner.look()
    assert {path.suffix for path in ruling.folder.iterdir()} == {LOCK, RECORD}
    assert not ruling.charges.is_suspect(0)


def test_foreign_objects_among_the_deaths_charge_nobody(ruling: Ruling) -> None:
    for name in (
        "x/alone-w.json", "0/other-w.json", "7", "0/alone-w.json/x", "0/alone-input/input/x",
        "0/alone-a/b.json", "00/alone-w.json", "0/alone", "0/alone-w",
    ):  # fmt: skip
        ruling.store.put(keys.deaths("k") + name, b"{}")
    charges = charges_of(ruling.store, "k")
    assert not charges.is_suspect(0) and charges.error(0, 1) is None


def test_deaths_are_looked_into_before_the_model_is_loaded(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    monkeypatch.setattr(Coroner, "look", lambda self: looks.append(self._folder))
    monkeypatch.setattr("worker.services.build_engine", lambda *_, **__: 1 / 0)
    settings = Settings.load({}, home=tmp_path, broker_url=redis_url)
    with pytest.raises(ZeroDivisionError):
        open_services(settings, lambda *_, **__: None)
    assert looks == [tmp_path / JOURNALS]


def test_a_neighbour_on_three_machines_that_die_is_answered_by_the_fourth(
    tmp_path: Path, redis_url: str
) -> None:
    """Prompt 0 kills; its neighbour's shard was taken again before any machine was back."""
    machines = [make_world(tmp_path / f"m{i}", redis_url, f"w{i}", 0.0) for i in range(4)]
    start(machines[0], "poison", "innocent", shard_size=1)
    refs = [ShardRef("j", "00000"), ShardRef("j", "00001")]
    store = machines[0].store
    for i, machine in enumerate(machines[:3]):
        claims = [machine.ledger.claim(ref, 3) for ref in refs]
        for claim in claims:
            assert isinstance(claim, Claim) and not claim.exhausted
            store.put(keys.attempt("j", claim.ref.shard, claim.attempt), b"{}")
        rows = [[c.ref.job_id, c.ref.shard, c.attempt, c.token] for c in map(checked, claims)]
        record = {"worker": f"w{i}", "claims": rows, "preparing": [],
                  "running": [["j", 0, False], ["j", 1, False]]}  # fmt: skip
        folder = tmp_path / f"m{i}" / "dead"
        folder.mkdir()
        (folder / f"w{i}{RECORD}").write_text(json.dumps(record))
        (folder / f"w{i}{LOCK}").touch()
    for i, machine in enumerate(machines[:3]):
        Coroner(tmp_path / f"m{i}" / "dead", store, machine.ledger.pardon).look()
    fourth = machines[3].ledger.claim(refs[1], 3)
    assert isinstance(fourth, Claim) and not fourth.exhausted
    assert list(store.entries(keys.attempts("j"))) == []
    assert charges_of(store, "j").beside == {0: 3, 1: 3}


def checked(claim: Claim | str) -> Claim:
    assert isinstance(claim, Claim)
    return claim

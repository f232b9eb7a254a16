"""An upload ends in one version and one answer, whatever is cut, repeated or raced."""

import json
import os
import threading

import pytest

from ramole_core import keys
from ramole_core.adapters.card import read_card
from ramole_core.adapters.reception import read_verdict, receive
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.staging import new_upload_id, stage_upload
from ramole_core.errors import AdapterRefusedError, InvalidInputError, StoreUnavailableError
from ramole_core.jobs import utc_now
from ramole_core.store.directory import DirectoryStore
from tests.adapters_corpus import GOOD_SAMPLES, make_good, stage_raw
from tests.bad_adapters import BAD_CASES, BAD_NAMES, BAD_SAMPLES, FOLDER_ONLY, edit_config, make_bad
from tests.unit.adapters.stores import Counting, Cut

SAMPLES = b'"one"\n"two"\n'


@pytest.fixture
def store(tmp_path):
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def adapter(model, tmp_path):
    make_good(tmp_path / "good", "list", model)
    return tmp_path / "good"


@pytest.fixture
def take(base, limits, tmp_path):
    """receive() of an upload id by a worker of its own."""

    def run(store, upload_id, describe=lambda ref, samples: None):
        workdir = tmp_path / "work"
        return receive(upload_id, store, Registry(store), base, limits, describe, workdir)

    return run


def log_of(store):
    return [json.loads(store.get(e.key)) for e in store.entries(keys.REGISTRY_LOG)]


def edit_upload(store, prefix, **values):
    table = json.loads(store.get(prefix + "upload.json")) | values
    store.put(prefix + "upload.json", json.dumps(table).encode())


def test_an_accepted_upload_is_whole_visible_described_and_answered(store, adapter, take, base):
    described = []
    stage_upload(store, adapter, GOOD_SAMPLES, "french", "ann", "u1")
    verdict = take(store, "u1", lambda ref, samples: described.append((ref, samples)))
    ref = AdapterRef("french", 1)
    assert (verdict.status, verdict.name, verdict.version) == ("accepted", "french", 1)
    assert described == [(ref, GOOD_SAMPLES)]
    card = read_card(store, ref)
    assert card.owner == "ann" and card.upload_id == "u1" and card.base == base.fingerprint
    assert card.targets == ("q_proj", "v_proj") and set(card.ranks.values()) == {2}
    assert card.num_samples == 3 and card.dtype == "F32"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert store.get(keys.adapter(ref) + name) == (adapter / name).read_bytes()
    assert not list(store.entries(keys.STAGING))
    assert read_verdict(store, "u1") == verdict
    assert Registry(store).active(1) == {"french": ref} if Registry(store).refresh() else False


def test_what_describing_notices_stands_in_the_card_and_the_answer(store, adapter, take):
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")
    verdict = take(store, "u1", lambda ref, samples: ["samples nearly equal those of x@1"])
    assert "samples nearly equal those of x@1" in verdict.warnings
    assert read_card(store, AdapterRef("french", 1)).warnings == verdict.warnings


def test_equal_content_is_unchanged_however_its_json_is_laid_out(store, adapter, take):
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")
    take(store, "u1")
    table = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(table, indent=7))
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u2")
    verdict = take(store, "u2")
    assert (verdict.status, verdict.version) == ("unchanged", 1)
    assert len(log_of(store)) == 1 and not list(store.entries(keys.STAGING))


def test_other_samples_or_a_removal_make_a_new_version(store, adapter, take):
    for number, samples in enumerate([b'"a"\n', b'"b"\n'], start=1):
        stage_raw(store, adapter, samples, "french", "ann", f"u{number}")
        assert take(store, f"u{number}").version == number
    registry = Registry(store)
    registry.remove("french")
    stage_raw(store, adapter, b'"b"\n', "french", "ann", "u3")
    verdict = take(store, "u3")
    assert (verdict.status, verdict.version) == ("accepted", 3)


@pytest.mark.parametrize("case", sorted(set(BAD_CASES) - FOLDER_ONLY))
def test_a_bad_adapter_put_straight_into_staging_is_refused(case, store, model, take, tmp_path):
    reason = make_bad(tmp_path / "bad", case, model)
    stage_raw(store, tmp_path / "bad", SAMPLES, "french", "ann", "u1")
    verdict = take(store, "u1")
    assert verdict.status == "refused" and verdict.error.code == "adapter_refused"
    assert verdict.error.reason == reason
    assert not list(store.entries("adapters/")) and not log_of(store)
    assert not list(store.entries(keys.STAGING))


@pytest.mark.parametrize("case", sorted(BAD_SAMPLES))
def test_bad_samples_put_straight_into_staging_are_refused(case, store, adapter, take):
    data, reason = BAD_SAMPLES[case]
    stage_raw(store, adapter, data, "french", "ann", "u1")
    assert take(store, "u1").error.reason == reason


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_on_both_sides(name, store, adapter, take):
    with pytest.raises(AdapterRefusedError) as refusal:
        stage_upload(store, adapter, ["a"], name, "ann", "u1")
    assert refusal.value.reason == "bad_name"
    stage_raw(store, adapter, SAMPLES, name, "ann", "u1")
    assert take(store, "u1").error.reason == "bad_name"


@pytest.mark.parametrize("upload_id", ["", "..", "../jobs", "a/b", "-"])
def test_an_id_that_is_none_reaches_no_store(upload_id, take):
    with pytest.raises(InvalidInputError):
        take(None, upload_id)


def test_only_the_owner_adds_a_version_and_spellings_do_not_collide(store, adapter, take):
    stage_raw(store, adapter, SAMPLES, "French", "ann", "u1")
    take(store, "u1")
    stage_raw(store, adapter, b'"b"\n', "French", "bob", "u2")
    assert take(store, "u2").error.reason == "not_owner"
    stage_raw(store, adapter, b'"b"\n', "FRENCH", "ann", "u3")
    assert take(store, "u3").error.reason == "name_collision"
    assert len(log_of(store)) == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s, p: s.delete(p + "upload.json"), "missing_file"),
        (lambda s, p: s.delete(p + "samples.jsonl"), "missing_file"),
        (lambda s, p: s.put(p + "upload.json", b"[]"), "bad_upload"),
        (lambda s, p: s.put(p + "upload.json", b"{" * (2 << 20)), "too_large"),
        (lambda s, p: edit_upload(s, p, owner="ann\x1b[2J"), "bad_upload"),
        (lambda s, p: edit_upload(s, p, owner="ann\x9b2J"), "bad_upload"),
        (lambda s, p: edit_upload(s, p, owner="ann\n"), "bad_upload"),
        (lambda s, p: edit_upload(s, p, created_at="\u202e2026"), "bad_upload"),
        (lambda s, p: s.put(p + "adapter_config.json", b"{}"), "damaged"),
        (lambda s, p: s.put(p + "adapter_model.safetensors", bytes(2 << 20)), "too_large"),
        (lambda s, p: s.put(p + "samples.jsonl", b""), "damaged"),
        (lambda s, p: s.put(p + "model.pkl", b"x"), "pickle_file"),
    ],
)
def test_a_spoilt_staging_folder_is_refused_and_cleared(spoil, reason, store, adapter, take):
    stage_upload(store, adapter, ["a"], "french", "ann", "u1")
    spoil(store, keys.staging("u1"))
    assert take(store, "u1").error.reason == reason
    assert not list(store.entries(keys.STAGING))


@pytest.mark.parametrize("name", ["a:b", os.fsdecode(b"\xff.txt")])
def test_a_file_with_an_odd_name_stops_neither_the_answer_nor_the_clearing(
    name, store, adapter, take, tmp_path, caplog
):
    stage_upload(store, adapter, ["a"], "french", "ann", "u1")
    folder = tmp_path / "store" / keys.staging("u1")
    (folder / name).write_text("x")
    assert take(store, "u1").status == "accepted"
    assert [file.name for file in folder.iterdir()] == [name]
    assert "1 staged files stay" in caplog.text


def test_a_store_that_fails_while_clearing_is_tried_again(store, adapter, take):
    stage_upload(store, adapter, ["a"], "french", "ann", "u1")
    deletes = []

    class Failing(Counting):
        def delete(self, key):
            deletes.append(key)
            raise StoreUnavailableError("down")

    with pytest.raises(StoreUnavailableError):
        take(Failing(store), "u1")
    assert len(deletes) == 1 and read_verdict(store, "u1").status == "accepted"
    assert take(store, "u1").status == "accepted"
    assert not list(store.entries(keys.STAGING))


def test_other_files_in_staging_are_neither_fetched_nor_kept(store, adapter, take):
    stage_upload(store, adapter, ["a"], "french", "ann", "u1")
    store.put(keys.staging("u1") + "deep/er.txt", b"x")
    assert take(store, "u1").status == "accepted"
    assert len(list(store.entries("adapters/"))) == 5 and not list(store.entries(keys.STAGING))


def test_staging_writes_upload_json_last_and_nothing_when_it_refuses(store, adapter):
    counting = Counting(store)
    stage_upload(counting, adapter, ["a"], "french", "ann", "u1")
    assert counting.calls[-1] == ("put", "staging/u1/upload.json")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterRefusedError):
        stage_upload(counting, adapter, ["a"], "french", "ann", "u2")
    assert store.children(keys.STAGING) == ["u1"]


@pytest.mark.parametrize("owner", ["", "a\tb", "x" * 201])
def test_an_owner_that_no_record_takes_is_refused_before_anything_is_written(owner, store, adapter):
    with pytest.raises(AdapterRefusedError, match="owner .*1 to 200 characters"):
        stage_upload(store, adapter, ["a"], "french", owner, "u1")
    assert not list(store.entries(keys.STAGING))


def test_upload_ids_sort_by_time():
    now = utc_now()
    ids = [new_upload_id(now.replace(microsecond=n * 1000)) for n in (1, 20, 300)]
    assert ids == sorted(ids)


def test_an_upload_received_twice_gets_the_same_answer(store, adapter, take):
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")
    assert take(store, "u1") == take(store, "u1")
    assert len(log_of(store)) == 1


@pytest.mark.parametrize("after", [False, True])
def test_cut_at_any_store_call_and_run_again_it_is_accepted_once(
    after, store, adapter, take, tmp_path
):
    stage_raw(store, adapter, SAMPLES, "dry", "ann", "dry")
    counting = Counting(store)
    take(counting, "dry")
    num_calls = len(counting.calls)
    assert num_calls > 15
    for cut_at in range(1, num_calls + 1):
        name = upload_id = f"cut{cut_at}"
        stage_raw(store, adapter, SAMPLES, name, "ann", upload_id)
        with pytest.raises(Cut):
            take(Counting(store, cut_at, after), upload_id)
        assert take(store, upload_id).status == "accepted"
        assert [e["version"] for e in log_of(store) if e["name"] == name] == [1]
        assert not list(store.entries(keys.staging(upload_id)))
        assert take(store, upload_id).version == 1
        assert len(list(store.entries(f"adapters/{name}/"))) == 5
    assert not list((tmp_path / "work").iterdir())


def test_a_describing_that_fails_leaves_the_upload_for_the_next_try(store, adapter, take):
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")

    def fails(ref, samples):
        raise RuntimeError("encoder")

    with pytest.raises(RuntimeError):
        take(store, "u1", fails)
    assert not log_of(store) and read_verdict(store, "u1") is None
    assert take(store, "u1").version == 1


def test_racing_uploads_of_one_name_all_become_versions(store, model, take, tmp_path):
    for number in range(6):
        folder = tmp_path / f"r{number}"
        make_good(folder, "one_linear", model, seed=number)
        stage_raw(store, folder, SAMPLES, "french", "ann", f"u{number}")
    verdicts = _in_threads([lambda n=n: take(store, f"u{n}") for n in range(6)])
    assert sorted(v.version for v in verdicts) == [1, 2, 3, 4, 5, 6]
    assert sorted(e["version"] for e in log_of(store)) == [1, 2, 3, 4, 5, 6]


def test_equal_uploads_at_once_become_one_version(store, adapter, take):
    together = threading.Barrier(3)
    for number in range(3):
        stage_raw(store, adapter, SAMPLES, "french", "ann", f"u{number}")

    def meet(ref, samples):
        together.wait(30)

    verdicts = _in_threads([lambda n=n: take(store, f"u{n}", meet) for n in range(3)])
    assert sorted(v.status for v in verdicts) == ["accepted", "unchanged", "unchanged"]
    assert len({v.version for v in verdicts}) == 1 and len(log_of(store)) == 1
    assert not list(store.entries(keys.STAGING))


def test_one_upload_received_by_many_workers_at_once_becomes_one_version(store, adapter, take):
    for number in range(5):
        upload_id = f"u{number}"
        stage_raw(store, adapter, SAMPLES, f"n{number}", "ann", upload_id)
        verdicts = _in_threads([lambda u=upload_id: take(store, u)] * 4)
        assert {(v.status, v.version) for v in verdicts} == {("accepted", 1)}
    assert len(log_of(store)) == 5


def test_owners_racing_for_a_new_name_leave_one_owner(store, adapter, take):
    for number in range(4):
        for owner in ("ann", "bob"):
            stage_raw(store, adapter, SAMPLES, f"n{number}", owner, f"{owner}{number}")
        verdicts = _in_threads(
            [lambda o=o, n=number: take(store, f"{o}{n}") for o in ("ann", "bob")]
        )
        assert sorted(v.status for v in verdicts) == ["accepted", "refused"]


@pytest.mark.parametrize("samples", [SAMPLES, b'"other"\n'])
def test_an_owner_who_comes_first_while_files_are_fetched_is_the_owner(
    samples, store, adapter, take
):
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")
    stage_raw(store, adapter, samples, "french", "bob", "u2")

    class Faster(Counting):
        def download(self, key, path, max_bytes):
            take(store, "u2")
            store.download(key, path, max_bytes)

    assert take(Faster(store), "u1").error.reason == "not_owner"
    assert [entry["owner"] for entry in log_of(store)] == ["bob"]
    assert store.children("adapters/french/") == ["1"], "nothing of the other's is written"


def test_the_config_is_stored_as_sent_but_never_trusted_for_its_base(store, adapter, take):
    edit_config(adapter, base_model_name_or_path="/etc/passwd")
    stage_raw(store, adapter, SAMPLES, "french", "ann", "u1")
    verdict = take(store, "u1")
    assert verdict.status == "accepted" and any("/etc/passwd" in w for w in verdict.warnings)


def _in_threads(functions):
    results = []
    threads = [threading.Thread(target=lambda f=f: results.append(f())) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(functions)
    return results

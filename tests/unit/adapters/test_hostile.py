"""The whole corpus in a fresh process: nothing runs, nothing takes long, both sides agree."""

import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ramole_core import keys
from ramole_core.adapters.card import read_card
from ramole_core.adapters.gate import Limits, check_folder
from ramole_core.adapters.reception import receive
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.registry import Registry
from ramole_core.adapters.samples import MAX_SAMPLES_BYTES, read_samples
from ramole_core.adapters.staging import UPLOAD_FILE
from ramole_core.errors import AdapterRefusedError
from ramole_core.store.directory import DirectoryStore
from tests.adapters_corpus import CONFIG, WEIGHTS, edit_config, make_good, stage_raw
from tests.bad_adapters import BAD_CASES, BAD_SAMPLES, CANARY, FOLDER_ONLY, make_bad
from tests.measured import BOMBS, DEEDS
from tests.unit.adapters.stores import Counting

ROOT = Path(__file__).parents[3]
MAX_SECONDS, MAX_MEGABYTES = 5, 500
WORKER_ONLY = {"not_finite", "too_large_values", "no_effect"}  # of the numbers themselves
CODE = {
    "base_model_name_or_path": "$(touch canary)",
    "loftq_config": {"__reduce__": "os.system", "code": "__import__('os').mkdir('canary')"},
    "eva_config": {"custom_object": "builtins.exec"},
    "megatron_core": "os",
    "revision": "../../main",
}


@pytest.fixture(scope="module")
def judged(model, base, tmp_path_factory):
    """Every case with its reason, and the rows of tests.measured by (case, side)."""
    folder = tmp_path_factory.mktemp("hostile")
    store = DirectoryStore(folder / "store")
    cases = {"warm-up": "dora", "good": None, "code_in_ignored_keys": None}
    make_bad(folder / "warm-up", "dora", model)
    make_good(folder / "good", "list", model)
    make_good(folder / "code_in_ignored_keys", "list", model)
    edit_config(folder / "code_in_ignored_keys", **CODE)
    for number, case in enumerate(BAD_CASES):
        cases[f"c{number}"] = make_bad(folder / f"c{number}", case, model)
    make_good(folder / "header_of_100_mb", "list", model)
    (folder / "header_of_100_mb" / WEIGHTS).write_bytes(
        struct.pack("<Q", 100 << 20) + b"{" + b" " * ((100 << 20) - 1)
    )
    cases["header_of_100_mb"] = "bad_header"
    local = {f"c{n}" for n, case in enumerate(BAD_CASES) if case in FOLDER_ONLY}
    for case in cases.keys() - local:
        stage_raw(store, folder / case, b'"a"\n', case, "ann", case)
    samples = {f"s-{name}": spoilt for name, spoilt in BAD_SAMPLES.items()}
    for name in ("samples: 64 MB of short lines", "samples: 60 MB of newlines"):
        samples[f"s-{len(samples)}"] = (BOMBS[name][1](), "num_samples")
    for case, (data, reason) in samples.items():
        cases[case] = reason
        (folder / case).symlink_to(folder / "good")
        stage_raw(store, folder / "good", data, "good", "ann", case.replace(" ", "-"))
    (folder / "base.json").write_text(base.model_dump_json())
    listed = [(case, case not in local) for case in cases]
    (folder / "cases.json").write_text(json.dumps(listed))
    words = [sys.executable, "-m", "tests.measured", "adapters", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 400 and not (folder / CANARY).exists()
    return cases, local, {(row["case"], row["side"]): row for row in rows}


def test_every_bad_adapter_is_refused_for_its_reason_on_both_sides(judged):
    cases, local, rows = judged
    for case, reason in cases.items():
        if case == "warm-up":
            continue
        sent = reason is None or case.startswith("s-") or reason in WORKER_ONLY
        assert rows[case, "producer"]["answer"] == ("passes" if sent else reason), case
        if case not in local:
            assert rows[case, "worker"]["answer"] == (reason or "accepted"), case


def test_nothing_is_executed_imported_connected_or_opened_elsewhere(judged):
    seen = {case for (case, _), row in judged[2].items() if row["seen"]}
    assert seen == set(DEEDS), "and the watch sees what it is there to see"


def test_nothing_takes_long_or_much_memory(judged):
    for row in judged[2].values():
        assert row["seconds"] < MAX_SECONDS and row["megabytes"] < MAX_MEGABYTES, row


def _take(store, upload_id, base, limits, tmp_path):
    describe, work = lambda ref, samples: None, tmp_path / "work"
    return receive(upload_id, store, Registry(store), base, limits, describe, work)


def test_file_names_in_the_upload_record_lead_nowhere(model, base, limits, tmp_path):
    store = DirectoryStore(tmp_path / "store")
    make_good(tmp_path / "good", "list", model)
    stage_raw(store, tmp_path / "good", b'"a"\n', "french", "ann", "u1")
    key = keys.staging("u1") + "upload.json"
    record = json.loads(store.get(key))
    names = [
        "../../x",
        "/etc/passwd",
        "a\0b",
        "\u202e",
        "CON",
        "-rf",
        "x" * 5000,
        "~",
        "jobs/../../y",
    ]
    record["files"] |= dict.fromkeys(names, {"size": 1, "sha256": "0"})
    store.put(key, json.dumps(record).encode())
    assert _take(store, "u1", base, limits, tmp_path).status == "accepted"
    assert len(list(store.entries("adapters/"))) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "store", "work"]
    assert list(read_card(store, AdapterRef("french", 1)).files) == [
        CONFIG,
        WEIGHTS,
        "samples.jsonl",
    ]


@pytest.mark.parametrize("name", ["a\x1b[2J\n.txt", "\u202etxt", "a\u200b", "-rf", "x" * 200])
def test_odd_files_beside_are_named_printably_and_not_sent(name, model, base, limits, tmp_path):
    make_good(tmp_path / "a", "list", model)
    (tmp_path / "a" / name).write_bytes(b"\x80\x04N.")
    (warning,) = (w for w in check_folder(tmp_path / "a", base, limits).warnings if "ignored" in w)
    assert warning.isprintable() and len(warning) < 250


def test_an_unknown_key_is_quoted_printably(model, base, limits, tmp_path):
    make_good(tmp_path / "a", "list", model)
    edit_config(tmp_path / "a", **{"\x1b[2J\n": 1})
    with pytest.raises(AdapterRefusedError) as refusal:
        check_folder(tmp_path / "a", base, limits)
    assert str(refusal.value).isprintable() and r"\x1b[2J\n" in str(refusal.value)


def test_a_nested_config_is_refused_at_any_depth_of_the_caller(model, base, limits, tmp_path):
    """Python's own limit would let one side take what the other, called deeper, refuses."""
    make_bad(tmp_path / "a", "ignored_but_nested", model)
    for depth in (0, 500):
        with pytest.raises(AdapterRefusedError, match="nested deeper than 64"):
            _deeper(depth, lambda: check_folder(tmp_path / "a", base, limits))


def _deeper(depth, call):
    return call() if depth == 0 else _deeper(depth - 1, call)


def test_a_file_of_samples_without_end_is_read_up_to_the_limit():
    with pytest.raises(AdapterRefusedError, match=f"over {MAX_SAMPLES_BYTES} bytes"):
        read_samples(Path("/dev/zero"))


def test_versions_raced_into_one_name_never_mix_their_files(model, base, limits, tmp_path):
    store, verdicts = DirectoryStore(tmp_path / "store"), []
    for number in range(4):
        make_good(tmp_path / f"r{number}", "list", model, seed=number)
        sample = json.dumps(f"sample of r{number}").encode()
        stage_raw(store, tmp_path / f"r{number}", sample, "french", "ann", f"r{number}")

    def take(number):
        work = tmp_path / f"w{number}"
        verdicts.append(_take(store, f"r{number}", base, limits, work))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(v.version for v in verdicts) == [1, 2, 3, 4]
    for version in range(1, 5):
        ref = AdapterRef("french", version)
        source = json.loads(store.get(keys.adapter(ref) + "samples.jsonl")).split()[-1]
        assert read_card(store, ref).upload_id == source
        for name in (CONFIG, WEIGHTS):
            assert store.get(keys.adapter(ref) + name) == (tmp_path / source / name).read_bytes()


@pytest.mark.parametrize("after", [CONFIG, WEIGHTS, "samples.jsonl"])
def test_staging_rewritten_while_it_is_read_is_refused_or_taken_whole(
    after, model, base, limits, tmp_path
):
    store = DirectoryStore(tmp_path / "store")
    for number in range(2):
        make_good(tmp_path / f"r{number}", "rank_1" if number else "list", model, seed=number)
    stage_raw(store, tmp_path / "r0", b'"zero"', "french", "ann", "u1")

    class Swapping(Counting):
        def download(self, key, path, max_bytes):
            store.download(key, path, max_bytes)
            if key.endswith(after):
                stage_raw(store, tmp_path / "r1", b'"one"', "french", "ann", "u1")

    verdict = _take(Swapping(store), "u1", base, limits, tmp_path)
    if verdict.status == "refused":
        assert verdict.error.reason == "damaged" and not list(store.entries("adapters/"))
        return
    ref = AdapterRef("french", 1)
    assert store.get(keys.adapter(ref) + "samples.jsonl") == b'"zero"'
    for name in (CONFIG, WEIGHTS):
        assert store.get(keys.adapter(ref) + name) == (tmp_path / "r0" / name).read_bytes()


@pytest.mark.parametrize("name", [UPLOAD_FILE, CONFIG, WEIGHTS, "samples.jsonl"])
def test_a_staged_file_that_grows_after_the_listing_fills_no_disk(
    name, model, base, limits, tmp_path
):
    store = DirectoryStore(tmp_path / "store")
    make_good(tmp_path / "a", "list", model)
    stage_raw(store, tmp_path / "a", b'"zero"', "french", "ann", "u1")

    class Growing(Counting):
        def entries(self, prefix):
            yield from store.entries(prefix)
            with suppress(FileNotFoundError):  # cleared by now
                os.truncate(tmp_path / "store" / keys.staging("u1") / name, 1 << 36)

    verdict = _take(Growing(store), "u1", base, limits, tmp_path)
    assert verdict.error.reason == "too_large" and name in verdict.error.message


def test_what_is_over_the_limit_is_not_read(model, base, tmp_path):
    make_good(tmp_path / "a", "list", model)
    with (tmp_path / "a" / CONFIG).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(AdapterRefusedError, match="adapter_config.json is over"):
        check_folder(tmp_path / "a", base, Limits(1 << 30, 256))

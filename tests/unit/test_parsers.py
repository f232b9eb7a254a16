"""Any bytes give an answer or the one error of the contract, whichever parser reads them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.readers import read_items
from producer.readers.csv_table import read_csv
from producer.readers.lines import MAX_LINE_BYTES
from producer.readers.record import RecordReader
from ramole_core.errors import ConflictError, InvalidInputError, printable
from ramole_core.job_files import JobFiles
from ramole_core.jobs import MAX_PROMPT_BYTES, MAX_SHARDS, Manifest, checked_name
from tests.measured import BOMBS
from tests.parsers import PARSERS, SEEDS

ROOT = Path(__file__).parents[2]
MAX_SECONDS, MAX_MEGABYTES = 5, 500
# What has broken a parser somewhere before.
SPLICES = (
    b"", b"\0", b"\xff", b"\n", b'"', b",", b"[" * 90, b"]" * 90, b"{", b"}", b"null", b"true",
    b"-1", b"1e999", b"Infinity", b"NaN", b"9" * 30, b"9" * 4400, b"0x" + b"f" * 4000, b"\\ud800",
    b"\x1b[2J",
    "\u202e".encode(), b"[" * 5000, b"(" * 200, b"(?i)", b"../", b"1.5", b"{}",
)  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, seed: bytes) -> bytes:
    """A good input with up to three parts replaced."""
    data = seed
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 12)))
        part = draw(st.sampled_from(SPLICES) | st.binary(max_size=6))
        data = data[:begin] + part + data[end:]
    return data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_good_inputs_are_read_and_any_bytes_are_read_or_refused(name: str) -> None:
    """PARSERS[name] raises when a parser raises what it may not, or answers what cannot be."""
    inputs = st.one_of([st.binary(max_size=60), JSON, *map(spoilt, SEEDS[name])])

    @settings(
        max_examples=120, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs)
    def parse(data: bytes) -> None:
        PARSERS[name](data)

    for seed in SEEDS[name]:
        PARSERS[name](seed)
    parse()


def test_no_input_however_large_takes_long_or_much_memory() -> None:
    words = [sys.executable, "-m", "tests.measured", "bombs"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"] for row in rows] == list(BOMBS)
    for row in rows:
        assert row["seconds"] < MAX_SECONDS and row["megabytes"] < MAX_MEGABYTES, row


@pytest.mark.parametrize("value", [None, 7, 1.5, True, [], {"a": 1}, "", "a/b", "..", "a" * 101])
def test_an_id_of_a_message_that_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="job .*: use 1 to 100 letters"):
        checked_name("job", value)  # type: ignore[arg-type]


def test_what_a_terminal_obeys_is_escaped() -> None:
    assert printable("a\x1b[2J\n\u202eb\ud800é") == "a\\x1b[2J\\n\\u202eb\\ud800é"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("encoder_config", b'{"a\\b_implementation":"x"}'),
        ("pattern", b"(?\x1a)"),
        ("csv_table", b"\xff" * 300),
        ("vector", SEEDS["vector"][0].replace(b"<f4", b"<a4")),
        ("vector", SEEDS["vector"][0].replace(b"}", b"{")),
    ],
)
def test_what_fuzzing_found_stays_mended(name: str, data: bytes) -> None:
    PARSERS[name](data)


def test_numbers_of_endless_digits_in_python_items_are_bad_items() -> None:
    found = list(read_items([{"prompt": "a", "id": 10**5000}, {"prompt": "a", "k": 10**5000}]))
    errors = [request.error.message for request in found if request.error]
    assert errors == [
        "item 1: 'id' is too large a number: write it as text",
        "item 2: k: at most 16, not a number of too many digits",
    ]


class Lines:
    """A file of a head and the same line for ever."""

    def __init__(self, head: list[bytes], line: bytes) -> None:
        self._head, self._line = head, line

    def readline(self, size: int) -> bytes:
        return self._head.pop(0) if self._head else self._line


def test_a_csv_row_without_end_is_one_error_with_its_line() -> None:
    file = Lines([b"prompt\n", b'"good\nprompt"\n', b'x,"\n'], b'",' + b"x" * 99_995 + b',"\n')
    found = read_csv(file, RecordReader(), "x.csv")  # type: ignore[arg-type]
    assert next(found).prompt == "good\nprompt"
    with pytest.raises(InvalidInputError, match=f"x.csv: line 77: .*{MAX_LINE_BYTES}.*quote"):
        list(found)


def test_a_csv_prompt_over_the_limit_is_one_bad_row_however_many_lines_it_has() -> None:
    lines = [b"prompt\n", b'"open\n', *[b"x" * 99 + b"\n"] * 20_000, b'closed"\n', b"good\n", b""]
    found = list(read_csv(Lines(lines, b""), RecordReader(), "x.csv"))  # type: ignore[arg-type]
    assert found[0].error is not None
    assert found[0].error.message.startswith("line 2: a prompt of 2000011 bytes")
    assert f"limit is {MAX_PROMPT_BYTES}" in found[0].error.message
    assert [request.prompt for request in found[1:]] == ["good"]


def test_a_parquet_value_that_python_cannot_hold_is_a_bad_row() -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from producer.readers.parquet import read_parquet

    times = pa.array([0, 1 << 50], pa.timestamp("s"))
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"], "id": times}), file)
    found = list(read_parquet(file, RecordReader(unit="row"), "x.parquet"))
    assert [request.error.message[:6] for request in found if request.error] == ["row 1:", "row 2:"]
    assert found[1].error is not None and "not readable" in found[1].error.message


def test_a_manifest_of_more_shards_than_there_can_be_is_no_manifest() -> None:
    seed = json.loads(SEEDS["Manifest"][0])
    Manifest.model_validate_json(json.dumps(seed | {"num_shards": MAX_SHARDS}))
    with pytest.raises(ConflictError, match="jobs/j/manifest.json is not readable .*num_shards"):
        data = json.dumps(seed | {"num_shards": MAX_SHARDS + 1}).encode()
        JobFiles(type("Store", (), {"get": lambda self, key: data})(), "j").manifest()

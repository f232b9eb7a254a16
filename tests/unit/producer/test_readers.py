"""Readers: every line becomes a prompt or an error with its true number; nothing raises."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.readers import Dataset, read_dataset, read_items
from producer.readers.csv_table import read_csv
from producer.readers.jsonl import read_jsonl
from producer.readers.lines import bounded_lines
from producer.readers.record import RecordReader
from producer.readers.text import read_text
from ramole_core.errors import InvalidInputError, NotFoundError
from ramole_core.jobs import MAX_PROMPT_BYTES, PromptOptions, PromptRequest
from ramole_core.store.directory import DirectoryStore

GOOD = b'{"prompt": "hello"}\n'

BAD_LINES = {
    "broken JSON": (b'{"prompt": "x"\n', "not JSON"),
    "two values": (b'{"prompt": "x"} {}\n', "not JSON"),
    "NaN": (b'{"prompt": "x", "top_p": NaN}\n', "not JSON"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}\n', "not UTF-8 at byte 13"),
    "lone surrogate": (b'{"prompt": "\\ud800"}\n', "not JSON"),
    "deep nesting": (b"[" * 100_000 + b"\n", "not JSON"),
    "a list": (b"[1]\n", "not a list"),
    "text": (b'"x"\n', "not text"),
    "null": (b"null\n", "not null"),
    "missing prompt": (b'{"id": "a"}\n', "missing prompt"),
    "null prompt": (b'{"prompt": null}\n', "missing prompt"),
    "empty prompt": (b'{"prompt": ""}\n', "empty"),
    "wrong type": (b'{"prompt": 7}\n', "must be text, not a number"),
    "prompt and messages": (b'{"prompt": "x", "messages": []}\n', "both"),
    "no messages": (b'{"messages": []}\n', "at least one user message"),
    "only a system message": (b'{"messages": [{"role": "system", "content": "x"}]}\n', "user"),
    "unknown role": (b'{"messages": [{"role": "tool", "content": "x"}]}\n', "messages.0.role"),
    "content of parts": (b'{"messages": [{"role": "user", "content": []}]}\n', "content"),
    "unknown key": (
        b'{"prompt": "x", "tempreature": 1}\n',
        "unknown key 'tempreature' (use --prompt-field prompt to ignore other keys)",
    ),
    "bad option": (b'{"prompt": "x", "k": 99}\n', "k: at most 16, not 99"),
    "option of a wrong type": (b'{"prompt": "x", "k": "3"}\n', "k: a whole number, not '3'"),
    "bad adapter name": (b'{"prompt": "x", "exclude_adapters": ["../a"]}\n', "exclude_adapters"),
    "bad id": (b'{"prompt": "x", "id": [1]}\n', "'id'"),
    "prompt over the limit": (
        b'{"prompt": "' + b"x" * (MAX_PROMPT_BYTES + 1) + b'"}\n',
        f"the limit is {MAX_PROMPT_BYTES}",
    ),
    "messages over the limit": (
        json.dumps({"messages": [{"role": "user", "content": "é" * 600_000}]}).encode() + b"\n",
        f"the limit is {MAX_PROMPT_BYTES}",
    ),
    "line of 10 MB": (b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n', "longer than"),
    "batch: other method": (b'{"method": "GET", "body": {"prompt": "x"}}\n', "only POST"),
    "batch: tools": (b'{"body": {"prompt": "x", "tools": []}}\n', "'tools' is not supported"),
    "batch: n": (b'{"body": {"prompt": "x", "n": 2}}\n', "'n' is not supported"),
    "batch: no object": (b'{"body": "x"}\n', "'body' must be an object"),
    "batch: stray key": (b'{"body": {"prompt": "x"}, "k": 2}\n', "unknown key 'k'"),
}


def jsonl(data: bytes, **fields: str) -> list[PromptRequest]:
    return list(read_jsonl(io.BytesIO(data), RecordReader(**fields)))


def dataset(path: Path, **attributes: Any) -> list[PromptRequest]:
    return list(read_dataset(Dataset(str(path), **attributes), DirectoryStore(path.parent)))


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_becomes_an_error_with_its_number_and_reason(kind: str) -> None:
    line, reason = BAD_LINES[kind]
    before, bad, after = jsonl(GOOD + b"\n" + line + GOOD)
    assert bad.error is not None and bad.error.code == "bad_line"
    assert bad.error.message.startswith("line 3: ") and reason in bad.error.message
    assert len(bad.error.message) <= 300
    assert [before.index, bad.index, after.index] == [0, 1, 2]
    assert before.error is after.error is None
    assert PromptRequest.model_validate_json(bad.model_dump_json(exclude_defaults=True)) == bad


def test_a_jsonl_line_may_carry_every_option() -> None:
    options = {
        name: value
        for name, value in json.loads(PromptOptions().model_dump_json()).items()
        if value is not None
    }
    options |= {"adapters": [{"name": "a", "weight": 0.5}], "stop": ["\n"], "min_similarity": 0.1}
    (request,) = jsonl(json.dumps({"prompt": "x", "id": 7, **options}).encode())
    assert request.error is None and request.id == "7"
    stored = PromptRequest.model_validate_json(request.model_dump_json(exclude_defaults=True))
    assert stored.options_over(PromptOptions()).adapters[0].weight == 0.5  # type: ignore[index]


def test_openai_batch_lines_are_mapped() -> None:
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": "END",
        "n": 1,
        "seed": None,
    }
    line = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (request,) = jsonl(json.dumps(line).encode())
    assert request.error is None and request.id == "c1" and request.query() == "hi"
    assert request.options == {"max_new_tokens": 5, "temperature": 0.5, "stop": ["END"]}


def test_a_byte_order_mark_and_a_missing_last_newline_are_fine() -> None:
    assert [r.prompt for r in jsonl(b"\xef\xbb\xbf" + GOOD + GOOD[:-1])] == ["hello", "hello"]


def test_a_foreign_dataset_keeps_its_other_columns_to_itself() -> None:
    line = b'{"question": "q", "answer": "a", "key": 3, "k": 2}\n'
    (request,) = jsonl(line, prompt_field="question", id_field="key")
    assert (request.prompt, request.id, request.options) == ("q", "3", {"k": 2})
    (strict,) = jsonl(line)
    assert strict.error is not None


def test_a_bad_line_with_an_id_keeps_it() -> None:
    (request,) = jsonl(b'{"id": "row-9", "prompt": ""}')
    assert request.error is not None and request.id == "row-9"


def test_text_lines_are_prompts_and_blank_ones_are_not() -> None:
    data = b"one\r\n\n  two \n\xff\n \t\nthree"
    found = list(read_text(io.BytesIO(data), RecordReader()))
    assert [r.prompt for r in found] == ["one", "  two ", None, "three"]
    assert found[2].error is not None and found[2].error.message.startswith("line 4: not UTF-8")


def csv(data: bytes, **fields: str) -> list[PromptRequest]:
    return list(read_csv(io.BytesIO(data), RecordReader(**fields), "x.csv"))


def test_csv_reads_the_prompt_and_id_columns_only() -> None:
    data = b'id,other,prompt\n1,x,"a, ""quoted""\nprompt"\n\n,y,plain\n'
    found = csv(data)
    assert [(r.id, r.prompt) for r in found] == [("1", 'a, "quoted"\nprompt'), (None, "plain")]
    assert all(not r.options for r in found)


def test_bad_csv_rows_have_the_number_of_their_first_line() -> None:
    data = (
        b'prompt,id\ngood,1\n,2\n\xff,3\n"two\nlines",4\na,b,c\n'
        b'"stray"quote,5\n' + b"x" * 9_000_000 + b",6\ngood,7\n"
    )
    found = csv(data)
    errors = [r.error.message for r in found if r.error]
    reasons = ["missing", "not UTF-8", "3 fields", "not CSV", "longer than"]
    numbers = [3, 4, 7, 8, 9]
    for message, reason, number in zip(errors, reasons, numbers, strict=True):
        assert message.startswith(f"line {number}: ") and reason in message
    assert [r.prompt for r in found if not r.error] == ["good", "two\nlines", "good"]
    assert [r.index for r in found] == list(range(8))


def test_an_unclosed_quote_is_an_error_and_not_a_glued_prompt() -> None:
    found = csv(b'prompt\n"open\nnext\nlast\n')
    assert [r.error is not None for r in found] == [True]


def test_csv_without_the_column_says_what_to_do() -> None:
    with pytest.raises(InvalidInputError, match="--prompt-field"):
        csv(b"question,answer\na,b\n")
    assert [r.prompt for r in csv(b"question,answer\na,b\n", prompt_field="question")] == ["a"]
    assert csv(b"") == []


def test_parquet_streams_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    table = pa.table({"prompt": ["a", None, "", "d"], "id": [1, 2, 3, 4], "z": [0, 0, 0, 0]})
    pq.write_table(table, path)
    found = dataset(path)
    assert [(r.prompt, r.id) for r in found if not r.error] == [("a", "1"), ("d", "4")]
    assert [r.error.message[:6] for r in found if r.error] == ["row 2:", "row 3:"]


def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": raw}), tmp_path / "x.parquet")
    found = dataset(tmp_path / "x.parquet")
    assert found[0].prompt == "fine"
    assert found[1].error is not None and "not UTF-8" in found[1].error.message


def test_parquet_messages_and_wrong_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [[{"role": "user", "content": "hi"}]]
    pq.write_table(pa.table({"messages": turns}), tmp_path / "m.parquet")
    assert dataset(tmp_path / "m.parquet")[0].query() == "hi"
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match="--prompt-field"):
        dataset(tmp_path / "t.parquet")
    (tmp_path / "no.parquet").write_bytes(b"nothing")
    with pytest.raises(InvalidInputError, match="Parquet"):
        dataset(tmp_path / "no.parquet")


def test_where_a_dataset_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.put("data/a.txt", b"from the store\n")
    found = read_dataset(Dataset("store:data/a.txt"), store)
    assert [r.prompt for r in found] == ["from the store"]
    stdin = io.TextIOWrapper(io.BytesIO(GOOD))
    monkeypatch.setattr("sys.stdin", stdin)
    assert [r.prompt for r in read_dataset(Dataset("-"), store)] == ["hello"]
    with pytest.raises(NotFoundError, match="no such file"):
        dataset(tmp_path / "none.jsonl")
    with pytest.raises(NotFoundError):
        list(read_dataset(Dataset("store:none.jsonl"), store))
    with pytest.raises(InvalidInputError, match="--format"):
        dataset(tmp_path / "data.xyz")
    with pytest.raises(InvalidInputError):
        dataset(tmp_path, format="jsonl")


def test_python_items_are_read_like_lines() -> None:
    items: list[Any] = ["a", {"prompt": "b", "k": 1}, {"prompt": "\ud800"}, 3]
    found = list(read_items(items))
    assert [r.prompt for r in found[:2]] == ["a", "b"]
    errors = [r.error.message[:7] for r in found if r.error]
    assert errors == ["item 3:", "item 4:"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        for i in range(20_000):
            file.write(b'{"prompt": "the prompt number %d of a long file"}\n' % i)
    tracemalloc.start()
    num = sum(1 for _ in read_dataset(Dataset(str(path)), DirectoryStore(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 20_000 and peak < 3 << 20


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "id", "k", "messages", "body", "stop", "role", "content", "?"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
any_line = st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")) | json_values.map(
    lambda value: json.dumps(value).encode()
)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_line, max_size=6))
def test_whatever_the_lines_nothing_raises_and_good_neighbours_are_unharmed(
    lines: list[bytes],
) -> None:
    data = b"".join(line + b"\n" + GOOD for line in lines)
    found = jsonl(data)
    numbers = [number for number, line in bounded_lines(io.BytesIO(data)) if line and line.strip()]
    assert [r.index for r in found] == list(range(len(numbers)))
    for request, number in zip(found, numbers, strict=True):
        line = data.split(b"\n")[number - 1]
        if line + b"\n" == GOOD:
            assert request.prompt == "hello" and request.error is None
        if request.error is not None:
            assert request.error.message.startswith(f"line {number}: ")
        encoded = request.model_dump_json(exclude_defaults=True)
        assert b"\n" not in encoded.encode()
        PromptRequest.model_validate_json(encoded).options_over(PromptOptions())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=6))
def test_whatever_the_bytes_csv_and_text_do_not_raise(parts: list[bytes]) -> None:
    data = b"\n".join(parts)
    list(read_text(io.BytesIO(data), RecordReader()))
    found = csv(b"prompt\n" + data)
    assert [r.index for r in found] == list(range(len(found)))

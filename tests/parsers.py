"""Every parser of what others wrote, as a function of bytes: it returns, or raises AssertionError.

Each calls the code as the system does, swallows the one kind of error that is its contract, and
checks what must hold of the answer. Shared by the property tests and by tests/fuzz.py.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import ValidationError

from producer.readers.csv_table import read_csv
from producer.readers.jsonl import read_jsonl
from producer.readers.parquet import read_parquet
from producer.readers.record import RecordReader
from producer.readers.text import read_text
from ramole_core.activations import Activation
from ramole_core.adapters.base_info import BaseInfo
from ramole_core.adapters.card import Card
from ramole_core.adapters.config import parse_config
from ramole_core.adapters.headers import ITEM_BYTES, parse_header, read_header
from ramole_core.adapters.log import LogEntry
from ramole_core.adapters.patterns import Budget, SafePattern
from ramole_core.adapters.ref import AdapterRef
from ramole_core.adapters.samples import parse_samples
from ramole_core.adapters.staging import Upload
from ramole_core.adapters.targets import TargetRules
from ramole_core.adapters.verdict import Verdict
from ramole_core.errors import (
    AdapterRefusedError,
    ConfigError,
    ConflictError,
    InvalidInputError,
    RamoleError,
)
from ramole_core.job_files import JobFiles
from ramole_core.jobs import (
    Finished,
    Manifest,
    PromptOptions,
    PromptRequest,
    PromptResult,
    Wire,
    checked_name,
)
from ramole_core.mole.card import RouterCard
from ramole_core.mole.router import RouterWeights, random_router
from ramole_core.retrieval.card import EncoderCard
from ramole_core.retrieval.model_files import check_model_folder
from ramole_core.retrieval.vectors import VectorShelf
from ramole_core.settings import Settings
from worker.journal import _read as read_journal
from worker.requests import SearchRequest

Parser = Callable[[bytes], object]
PARSERS: dict[str, Parser] = {}
SEEDS: dict[str, list[bytes]] = {}
LINEARS = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj")
_FOLDER = tempfile.TemporaryDirectory(prefix="ramole-parsers-")


def parser(*seeds: bytes, name: str = "") -> Callable[[Parser], Parser]:
    """Registers a parser with inputs that it accepts."""

    def keep(function: Parser) -> Parser:
        PARSERS[name or function.__name__] = function
        SEEDS[name or function.__name__] = list(seeds)
        return function

    return keep


def path_of(data: bytes, name: str) -> Path:
    """A file with that content, replaced by the next."""
    path = Path(_FOLDER.name) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def check_line(error: RamoleError) -> None:
    """A message is one line without anything that a terminal obeys."""
    assert str(error).isprintable() and len(str(error)) < 4000, repr(str(error))[:300]


# Uploads

_ENTRY = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'


@parser(b"\x04" + _ENTRY, b'\x02{"__metadata__":{"a":"b"},"x":' + _ENTRY[6:])
def header(data: bytes) -> None:
    buffer_bytes = data[0] if data else 0
    try:
        found = parse_header(data[1:], buffer_bytes)
    except AdapterRefusedError as e:
        return check_line(e)
    sizes = (ITEM_BYTES[t.dtype] * int(np.prod(t.shape, dtype=object)) for t in found.values())
    assert sum(sizes) == buffer_bytes
    return None


@parser(len(_ENTRY).to_bytes(8, "little") + _ENTRY + bytes(4))
def weights_file(data: bytes) -> None:
    try:
        read_header(path_of(data, "adapter_model.safetensors"))
    except AdapterRefusedError as e:
        check_line(e)


@parser(
    b'{"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["q_proj"],"bias":"none"}',
    b'{"peft_type":"LORA","r":2,"target_modules":".*_proj","rank_pattern":{"q.*":3},'
    b'"alpha_pattern":{"^up":1.5},"use_rslora":true,"init_lora_weights":"gaussian"}',
    b'{"peft_type":"LORA","r":2,"target_modules":["up_proj"],"exclude_modules":["x"],'
    b'"layers_to_transform":[0,11],"layers_pattern":"layers","auto_mapping":'
    b'{"parent_library":"transformers.models.a"},"runtime_config":{}}',
)
def config(data: bytes) -> None:
    try:
        rules = TargetRules(parse_config(data))
        for linear in LINEARS:
            assert type(rules.includes(linear)) is bool
            assert rules.rank(linear) >= 1 and rules.scaling(linear)
    except AdapterRefusedError as e:
        check_line(e)


@parser(rb"^model\.(layers|h)\.\d+\.[a-z_]*?(q|k)_proj$", rb"(?:a|b){1,3}\b[^c-f]+\w\S")
def pattern(data: bytes) -> None:
    budget = Budget(20_000)
    try:
        safe = SafePattern(data.decode(errors="replace"), budget)
        for linear in LINEARS:
            safe.matches(linear)
            safe.matches_suffix(linear)
    except AdapterRefusedError as e:
        check_line(e)


@parser(b'"one"\n"two \\u00e9"\n')
def samples(data: bytes) -> None:
    try:
        assert all(text.strip() for text in parse_samples(data))
    except AdapterRefusedError as e:
        check_line(e)


# Datasets


def _requests(found: Iterable[PromptRequest]) -> None:
    try:
        for index, request in enumerate(found):
            assert request.index == index
            if request.error is not None:
                message = request.error.message
                assert message.startswith(("line ", "row ", "item ")) and message.isprintable()
                assert len(message) <= 300
            stored = PromptRequest.model_validate_json(
                request.model_dump_json(exclude_defaults=True)
            )
            assert stored == request
            stored.options_over(PromptOptions())
    except InvalidInputError as e:
        check_line(e)


@parser(
    b'{"prompt": "a", "id": 1, "k": 2, "adapters": [{"name": "x"}], "stop": ["."]}\n',
    b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n',
    b'{"messages": [{"role": "user", "content": "hi"}], "min_similarity": 0.5, "seed": 1}\n',
)
def jsonl(data: bytes) -> None:
    _requests(read_jsonl(io.BytesIO(data), RecordReader()))
    _requests(read_jsonl(io.BytesIO(data), RecordReader("q", "key")))


@parser(b'prompt,id\n"a ""b""\nc",1\nplain,2\n', b"\xef\xbb\xbfid,prompt,prompt\r\n1,a,b,c\r\n")
def csv_table(data: bytes) -> None:
    _requests(read_csv(io.BytesIO(data), RecordReader(), "x.csv"))


@parser(b"one\ntwo\r\n\n three")
def text(data: bytes) -> None:
    _requests(read_text(io.BytesIO(data), RecordReader()))


def _parquet_seed() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", None, "b"], "id": [1, 2, 3]}), file)
    return file.getvalue()


@parser(_parquet_seed())
def parquet(data: bytes) -> None:
    _requests(read_parquet(io.BytesIO(data), RecordReader(unit="row"), "x.parquet"))


# Records of the store

_OPTIONS = PromptOptions().model_dump_json()[1:-1]
_PINS = '"pins":{"base":"a","encoder":"b","router":null,"registry":1}'
_RECORDS: dict[type[Wire], str] = {
    Manifest: '{"job_id":"j","created_at":"t","submission":"s","content_sha256":"0","options":{'
    + _OPTIONS
    + ',"deadline":"2026-01-31T06:00:00+00:00"},'
    + _PINS
    + ',"num_prompts":1,"num_bad_lines":0,"num_shards":1}',
    PromptRequest: '{"index":0,"prompt":"a","options":{"k":1,"allow_adapters":["a"]}}',
    PromptResult: '{"index":0,"text":"a","finish_reason":"stop","adapters":[{"name":"a",'
    '"version":1,"similarity":null,"weight":1.0}],"usage":{"prompt_tokens":1,'
    '"completion_tokens":1}}',
    Finished: '{"finished_at":"t","num_ok":1,"num_failed":0}',
    Upload: '{"name":"a","owner":"me","created_at":"t","files":{"a":{"size":1,"sha256":"0"}}}',
    Verdict: '{"status":"accepted","name":"a","version":1,"warnings":["w"]}',
    LogEntry: '{"op":"add","name":"a","version":1,"at":"t","sha256":"0","owner":"me"}',
    Activation: '{"op":"use","kind":"encoder","version":"e","at":"t"}',
    SearchRequest: '{"kind":"search","text":"a","k":3,"exclude_adapters":["a"]}',
    BaseInfo: '{"name":"b","targets":{"a":[1,2]},"context_tokens":64}',
    RouterCard: random_router({}, 1, None).card.model_dump_json(),  # type: ignore[arg-type]
    Card: '{"name":"a","version":1,"owner":"me","created_at":"t","upload_id":"u","sha256":"0",'
    '"base":"b","targets":["q"],"ranks":{"q":1},"dtype":"F32","num_samples":1,"size_bytes":1,'
    '"files":{"a":{"size":1,"sha256":"0"}}}',
    EncoderCard: "{}",
}


def _record(model: type[Wire], seed: bytes) -> None:
    @parser(seed, name=model.__name__)
    def parse(data: bytes) -> None:
        try:
            found = model.model_validate_json(data)
        except ValidationError:
            return
        assert model.model_validate_json(found.model_dump_json()) == found
        if isinstance(found, Manifest):
            assert len(found.shard_names()) <= 100_000
        if isinstance(found, PromptRequest):
            found.query()


for _model, _seed in _RECORDS.items():
    _record(_model, _seed.encode())


@parser(b'{"finished_at":"t","num_ok":1,"num_failed":0}', b'{"index":0}', b'{"cancelled_at":"t"}')
def job_files(data: bytes) -> None:
    job = JobFiles(SimpleNamespace(get=lambda key: data), "j")  # type: ignore[arg-type]
    reads: list[Callable[[], Any]] = [
        job.manifest, job.finished, job.cancelled_at, lambda: job.count("00000"),
        lambda: list(job.results("00000")),
        lambda: list(job.requests(SimpleNamespace(submission="s"), "00000")),  # type: ignore[arg-type]
    ]  # fmt: skip
    for read in reads:
        try:
            read()
        except ConflictError as e:
            check_line(e)


@parser(b'"20260131-060000-123-9f2c4e"', b"[1]")
def task_argument(data: bytes) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    try:
        assert checked_name("job", value) == value and "/" not in value
    except InvalidInputError as e:
        return check_line(e)
    return None


@parser(b'{"worker":"w","claims":[["j","00000",1,"w:1"]],"preparing":[],"running":[["j",0,false]]}')
def journal(data: bytes) -> None:
    for record in read_journal(path_of(data, "w.json")):
        assert all(0 <= ref.index < 1 << 48 for ref in record.running)


@parser(b'batch_size = 4\nmodel_aliases = ["a", "b"]\nlease_seconds = 1.5\ndevice = "cpu"\n')
def settings_file(data: bytes) -> None:
    path = path_of(data, "home/ramole.toml")
    try:
        Settings.load({}, home=path.parent)
    except ConfigError as e:
        check_line(e)


# Encoders, routers, vectors


def _vector_seed() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(4, np.float32))
    return file.getvalue()


@parser(_vector_seed())
def vector(data: bytes) -> None:
    store: Any = SimpleNamespace(get=lambda key: data if "vectors/" in key else b'"a"\n',
                                 put=lambda key, data: None)  # fmt: skip
    shelf = VectorShelf(store, "e", lambda texts: np.ones((len(texts), 4), np.float32), 4)
    found = shelf.vector(AdapterRef("a", 1))
    assert found.shape == (4,) and np.isfinite(found).all()


_ROUTER = random_router({"a": (2, 2)}, 1, None).to_files()  # type: ignore[arg-type]


@parser(_ROUTER["router.safetensors"])
def router(data: bytes) -> None:
    with suppress(InvalidInputError):
        RouterWeights.from_files({**_ROUTER, "router.safetensors": data}).check_fits({"a": (2, 2)})


@parser(
    b'[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},'
    b'{"idx":1,"name":"1","path":"1_Dense","type":"sentence_transformers.models.Dense"}]'
)
def encoder_modules(data: bytes) -> None:
    path = path_of(data, "encoder/modules.json")
    try:
        check_model_folder(path.parent)
    except InvalidInputError as e:
        check_line(e)


@parser(b'{"model_type":"bert","hidden_act":"gelu","attn_implementation":"sdpa"}')
def encoder_config(data: bytes) -> None:
    path_of(SEEDS["encoder_modules"][0], "encoder2/modules.json")
    path = path_of(data, "encoder2/config.json")
    try:
        check_model_folder(path.parent)
    except InvalidInputError as e:
        check_line(e)

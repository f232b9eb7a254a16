"""What the files of a stored encoder may say: nothing that runs code or loads from elsewhere.

sentence-transformers follows its JSON files: they name classes to import, activation functions,
weight files and options of the loaders, and `trust_remote_code=False` does not stop all of it.
Encoders come from a store that others can write to, so what training saves is allowed here and
all else is refused. Reads JSON only; imports none of the libraries it guards.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from ramole_core.errors import InvalidInputError, printable

MAX_JSON_BYTES: Final = 16 * 1024**2
MAX_TOKENIZER_BYTES: Final = 64 * 1024**2
REMEDY: Final = "store only what `ramole train retriever` saves"

_LIBRARY: Final = "sentence_transformers"
_DENSE: Final = (f"{_LIBRARY}.models.Dense", f"{_LIBRARY}.base.modules.dense.Dense")
MODULE_TYPES: Final = (  # as versions up to 5 and from 6 on write them
    *_DENSE,
    f"{_LIBRARY}.models.Transformer",
    f"{_LIBRARY}.base.modules.transformer.Transformer",
    f"{_LIBRARY}.models.Pooling",
    f"{_LIBRARY}.sentence_transformer.modules.pooling.Pooling",
    f"{_LIBRARY}.models.Normalize",
    f"{_LIBRARY}.sentence_transformer.modules.normalize.Normalize",
    f"{_LIBRARY}.base.modules.normalize.Normalize",
    f"{_LIBRARY}.models.StaticEmbedding",
    f"{_LIBRARY}.sentence_transformer.modules.static_embedding.StaticEmbedding",
)
ACTIVATIONS: Final = ("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh")

_SENTENCE: Final = "sentence_*_config.json"
_LIBRARY_CONFIG: Final = "config_sentence_transformers.json"
# Not looked into: the keys are tokens; data_config.json is a hub's record that no loader reads.
_OPAQUE: Final = ("tokenizer.json", "vocab.json", "added_tokens.json", "data_config.json")
_NAMES: Final = (
    "modules.json",
    "config.json",
    _LIBRARY_CONFIG,
    _SENTENCE,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *_OPAQUE,
)
_KEYS: Final = {
    "modules.json": ("idx", "name", "path", "type"),
    _LIBRARY_CONFIG: (
        "__version__",
        "default_prompt_name",
        "model_type",
        "prompts",
        "similarity_fn_name",
        "truncate_dim",
    ),
    _SENTENCE: (
        "do_lower_case",
        "max_seq_length",
        "modality_config",
        "module_output_name",
        "transformer_task",
    ),
}
_FORBIDDEN: Final = {  # at any depth of any file: the loaders merge nested settings
    "auto_map",
    "code_revision",
    "compression_config",
    "custom_pipelines",
    "gguf_file",
    "kernel_config",
    "quantization_config",
    "transformers_weights",
    "trust_remote_code",
    "use_kernels",
}
_IMPLEMENTATIONS: Final = (None, True, False, "eager", "sdpa", "batched_mm", "grouped_mm")
_FOLDER: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]{0,99})?")  # empty: the folder itself


def check_model_folder(folder: Path, name: str = "encoder model") -> None:
    """Passes when loading the model in `folder` can run no code that the folder chooses.

    Call it before anything is loaded. Raises InvalidInputError, which starts with `name`.
    """
    try:
        for path in sorted(folder.rglob("*.json")):
            _check_file(path.relative_to(folder).as_posix(), path)
        _check_modules(folder)
    except _Refused as e:
        raise InvalidInputError(f"{name}: {e}; {REMEDY}") from e
    except OSError as e:
        raise InvalidInputError(f"{name}: {folder.name}: {e.strerror or e}; {REMEDY}") from e


class _Refused(Exception):
    """Raised when a file breaks a rule: where and what."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


def _check_file(where: str, path: Path) -> None:
    """The rules that hold for every JSON file, and those of its name."""
    kind = _SENTENCE if fnmatchcase(path.name, _SENTENCE) else path.name
    if kind not in _NAMES:
        raise _Refused(where, f"a model may not have this file; allowed are {', '.join(_NAMES)}")
    limit = MAX_TOKENIZER_BYTES if kind == "tokenizer.json" else MAX_JSON_BYTES
    if (size := path.stat().st_size) > limit:
        raise _Refused(where, f"{size} bytes, at most {limit}")
    if kind in _OPAQUE:
        return
    content = _read(where, path)
    for key, value in _pairs(content):
        _check_pair(where, key, value)
    for part in content if kind == "modules.json" and isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            raise _Refused(where, "not the JSON object that it should hold")
        for key in part.keys() - _KEYS.get(kind, part.keys()):
            raise _Refused(where, f"unknown key {_shown(key)}; known: {', '.join(_KEYS[kind])}")
    if kind == _SENTENCE:
        _check_sentence(where, content)
    if kind == _LIBRARY_CONFIG:  # another type is converted: its own rules hold for its files
        _check_value(where, "model_type", content, (None, "SentenceTransformer"))


def _check_pair(where: str, key: str, value: Any) -> None:
    if key in _FORBIDDEN:
        raise _Refused(where, f"{key} is not allowed")
    if "_implementation" in key and value not in _IMPLEMENTATIONS:  # others are fetched from a hub
        shown = f"{printable(key[:80])} {_shown(value)}"
        raise _Refused(where, f"{shown} is none of {_listed(_IMPLEMENTATIONS)}")


def _check_sentence(where: str, content: dict[str, Any]) -> None:
    """The options of a Transformer module; `method` is called on the model by its name."""
    _check_value(where, "transformer_task", content, (None, "feature-extraction"))
    modalities = content.get("modality_config") or {}
    for way in modalities.values() if isinstance(modalities, dict) else [modalities]:
        if not isinstance(way, dict):
            raise _Refused(where, "modality_config is not an object of objects")
        _check_value(where, "method", way, (None, "forward"))


def _check_modules(folder: Path) -> None:
    """modules.json: which classes are imported, and from which folder each reads its files."""
    where = "modules.json"
    modules = _read(where, folder / where)
    if not isinstance(modules, list) or not modules:
        raise _Refused(where, "not a list of modules")
    for module in modules:
        _check_value(where, "type", module, MODULE_TYPES)
        path = module.get("path")
        if not isinstance(path, str) or not _FOLDER.fullmatch(path):
            raise _Refused(where, f"path {_shown(path)} is not the plain name of a folder in it")
        config = folder / path / "config.json"
        if module["type"] in _DENSE and config.exists():
            inside = config.relative_to(folder).as_posix()
            content = _read(inside, config)
            if "activation_function" in content:
                _check_value(inside, "activation_function", content, ACTIVATIONS)


def _check_value(
    where: str, key: str, content: dict[str, Any], allowed: tuple[str | None, ...]
) -> None:
    if content.get(key) not in allowed:
        raise _Refused(where, f"{key} {_shown(content.get(key))} is none of {_listed(allowed)}")


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    rest = [content]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            yield from part.items()
            rest.extend(part.values())
        elif isinstance(part, list):
            rest.extend(part)


def _read(where: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # as the library reads it
    except FileNotFoundError as e:
        raise _Refused(where, "is missing") from e
    except (ValueError, RecursionError) as e:
        raise _Refused(where, f"not readable as JSON: {type(e).__name__}") from e


def _shown(value: Any) -> str:
    return repr(value)[:120]


def _listed(allowed: tuple[Any, ...]) -> str:
    return ", ".join(map(str, allowed))

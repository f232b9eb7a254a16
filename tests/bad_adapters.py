"""Bad adapters, spoilt one rule at a time: what the gate must refuse, each with its reason.

`make_bad(folder, case, model)` leaves a folder that must be refused and returns the reason. The
cases: tests/bad_files.py and tests/bad_contents.py.
"""

import gzip
from pathlib import Path

from torch import nn

import tests.bad_contents  # noqa: F401
from tests.adapters_corpus import edit_config, make_good
from tests.bad_cases import BAD
from tests.bad_files import CANARY, FOLDER_ONLY

__all__ = [
    "BAD_CASES", "BAD_NAMES", "BAD_SAMPLES", "CANARY", "FOLDER_ONLY", "edit_config", "make_bad",
]  # fmt: skip


def make_bad(folder: Path, case: str, model: nn.Module) -> str:
    """Leaves a bad adapter in `folder`; returns the reason it must be refused for."""
    make_good(folder, "list", model)
    (folder / "README.md").unlink(missing_ok=True)
    reason, spoil = BAD[case]
    spoil(folder)
    return reason


BAD_CASES = sorted(BAD)

# file content -> reason
BAD_SAMPLES: dict[str, tuple[bytes, str]] = {
    "none": (b"", "num_samples"),
    "too_many": (b'"a"\n' * 1001, "num_samples"),
    "not_json": (b'"a"\nhello\n', "bad_sample"),
    "not_a_string": (b'"a"\n{"prompt": "b"}\n', "bad_sample"),
    "an_empty_line": (b'"a"\n\n"b"\n', "bad_sample"),
    "empty_text": (b'"a"\n""\n', "bad_sample"),
    "many_small_values": (b'"a"\n[' + b"[]," * 1_000_000 + b"[]]\n", "bad_sample"),
    "space_before": (b'"a"\n "b"\n', "bad_sample"),
    "line_too_long": (b'"a"\n"b"' + b" " * 1_200_002 + b"\n", "bad_sample"),
    "only_spaces": (b'"a"\n" \\t"\n', "bad_sample"),
    "not_utf8": (b'"a"\n"\xff"\n', "bad_sample"),
    "lone_surrogate": (b'"a"\n"\\ud800"\n', "bad_sample"),
    "too_long": (b'"a"\n"' + b"x" * 100_001 + b'"\n', "bad_sample"),
    "a_million_lines": (b'"a"\n' * 1_000_000, "num_samples"),
    "nothing_but_newlines": (b"\n" * (8 << 20), "num_samples"),
    "gzip": (b'"a"\n' + gzip.compress(b'"b"\n' * 1000), "bad_sample"),
    "binary": (b'"a"\n' + bytes(range(256)), "bad_sample"),
    "control_characters": (b'"a"\n"\x1b[2J"\n', "bad_sample"),
    "two_values": (b'"a"\n"b" "c"\n', "bad_sample"),
    "a_mark_before": (b'"a"\n\xef\xbb\xbf"b"\n', "bad_sample"),
}
BAD_NAMES = [
    "", ".", "..", "../up", "a/b", "a b", "-x", "é", "x" * 101, "a\n", "a\0b", "a@1", "-rf", "...",
    "/etc/passwd", "C:\\a", "~", "a*", "$(id)", "a;id", "%2e%2e", ".hidden", "_a", "x" * 1000,
    "\u202etxt.exe", "a\u200b", "\u0430dapter", "\uff41", "a\x1b[2J", "\u0661",
]  # fmt: skip

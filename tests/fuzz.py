"""`python -m tests.fuzz [SECONDS]`: coverage-guided fuzzing of all parsers. Needs `atheris`.

One corpus over all parsers (the first byte of an input chooses), kept by libFuzzer when it reaches
new edges of our packages. Prints what libFuzzer prints; exit code 0 means that nothing raised, took
10 seconds or 2 GB. A finding belongs into tests/unit/test_parsers.py.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ramole_core", "producer", "worker"]):
    from tests.parsers import PARSERS, SEEDS

NAMES = sorted(PARSERS)


def run(data: bytes) -> None:
    """One input."""
    if data:
        PARSERS[NAMES[data[0] % len(NAMES)]](data[1:])


def main(seconds: str = "60") -> None:
    """Runs for `seconds` on one core."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(NAMES):
            for place, seed in enumerate(SEEDS[name]):
                (Path(folder) / f"{name}-{place}").write_bytes(bytes([number]) + seed)
        options = [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=2048",
        ]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", folder], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

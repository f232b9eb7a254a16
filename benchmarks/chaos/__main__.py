"""The whole product under load while a seeded script does harm to its parts.

    python -m benchmarks.chaos [--minutes N] [--faults N] [--seed S] [--store directory|s3]
        [--json PATH] [--keep]

A broker, three supervised workers and a store, in processes of their own. Jobs of the zoo's prompts
come without pause; workers and Redis are killed and frozen, Redis is wiped, the store taken away,
adapters come and go. Then everything has to end by itself, and every answer is compared with that
of an undisturbed run before. `--store s3` needs RAMOLE_TEST_S3_URL. `--keep`: the data folder,
with the logs.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.chaos.rehearsal import rehearse
from benchmarks.chaos.rows import rows_of
from benchmarks.report import report

SECONDS_PER_FAULT = 15.0


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults strike")
    parser.add_argument("--faults", type=int, help="how many; one in 15 seconds if not given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("directory", "s3"), default="directory")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    given = parser.parse_args()
    seconds = given.minutes * 60
    num_faults = given.faults or max(1, round(seconds / SECONDS_PER_FAULT))
    outcome = rehearse(seconds, num_faults, given.seed, given.store, given.keep)
    for line in outcome.verdict.examples:
        print(line, file=sys.stderr)
    rows = list(rows_of(outcome))
    settings = {"minutes": given.minutes, "faults": num_faults} | {
        name: getattr(given, name) for name in ("seed", "store")
    }
    report(rows, settings, given.json)
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

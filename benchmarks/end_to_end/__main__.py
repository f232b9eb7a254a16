"""The whole product beside its own engine, on the same prompts.

    python -m benchmarks.end_to_end [--model zoo|bench] [--quick] [--json PATH]

One side is a job: producer, Redis, worker process and directory store, from the submission to the
final record. The other is encoder, index and engine in one process. Model, adapters, encoder, k,
gate, settings and numbers of threads are the same; both sides are warm, take turns, and while one
computes the other is idle. The ratio is that of the medians, and the answers must be equal.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.end_to_end.alone import AloneProcess, alone_process
from benchmarks.end_to_end.pools import make_pool, zoo_prompts
from benchmarks.end_to_end.rows import TARGET, Rounds, rows_of
from benchmarks.end_to_end.through import run_job, upload
from benchmarks.report import report
from producer.client import Client
from producer.embedded.temporary import temporary_system
from ramole_core.jobs import JobOptions


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--model", choices=("zoo", "bench"), default="zoo")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a trial run: 200 prompts, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.prompts, arguments.rounds = 200, 1
    options = JobOptions(max_new_tokens=arguments.max_new_tokens)
    rounds = _measure(arguments.model, arguments.prompts, options, arguments.rounds)
    rows = list(rows_of(rounds, None if arguments.quick else TARGET))
    named = {name: getattr(arguments, name) for name in ("model", "prompts", "rounds")}
    settings = named | options.model_dump(include={"k", "gate", "max_new_tokens", "shard_size"})
    report(rows, settings, arguments.json)
    return 1 if any(row.met is False for row in rows) else 0


def _measure(model: str, num_prompts: int, options: JobOptions, num_rounds: int) -> Rounds:
    with tempfile.TemporaryDirectory(prefix="ramole-pool-") as folder:
        pool = make_pool(model, Path(folder))
        with temporary_system("ramole-e2e-", variables=pool.variables) as client:
            upload(client, pool)
            with alone_process(pool, client.settings, options) as alone:
                prompts = zoo_prompts(num_prompts)
                return _take_turns(client, alone, prompts, options, num_rounds)


def _take_turns(
    client: Client, alone: AloneProcess, prompts: list[str], options: JobOptions, num_rounds: int
) -> Rounds:
    """Now one side is first, now the other. The first round warms up and does not count."""
    through_rounds, alone_rounds = [], []
    for number in range(num_rounds + 1):
        if number % 2:
            alone_rounds.append(alone.run(prompts))
        through_rounds.append(run_job(client, prompts, options.max_new_tokens))
        if not number % 2:
            alone_rounds.append(alone.run(prompts))
    return Rounds(len(prompts), through_rounds[1:], alone_rounds[1:])


if __name__ == "__main__":
    sys.exit(main())

"""The engine's speed: what the mixture, the pool and unequal answers cost, and what others take.

    python -m benchmarks.engine [--quick] [--json PATH] [--only ROW …] [--profile ROW]

A Llama of 111 M random weights (on CUDA: 6.7 G), 48 adapters of rank 8 (16) on all linears in
families of 6; gate `mole` with a router over k = 3 experts; greedy answers of 32 tokens to prompts
of 64. Every row is a ratio of tokens per second, of entrants that take turns in this process.
bfloat16 rows end in `_bf16`. The JSON file also holds every entrant's tokens per second, its
unique experts per decode step, and how many adapters it loaded and waited for.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.engine.measurements import MEASUREMENTS, Measurement
from benchmarks.engine.profiling import profile
from benchmarks.engine.race import race
from benchmarks.engine.sizes import CPU_SHAPE, CUDA_SHAPE, FULL, QUICK, Scale
from benchmarks.engine.world import World
from benchmarks.report import Row, report
from ramole_core.engine.factory import SWITCH_SECONDS

SUFFIX = {"float32": "", "bfloat16": "_bf16"}


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    sys.setswitchinterval(SWITCH_SECONDS)  # as in a worker
    scale = QUICK if arguments.quick else FULL
    shape = CUDA_SHAPE if arguments.device == "cuda" else CPU_SHAPE
    chosen = select(arguments.profile and [arguments.profile] or arguments.only)
    rows: list[Row] = []
    details: list[Row] = []
    for dtype in SUFFIX if arguments.dtype == "both" else (arguments.dtype,):
        world = World.build(shape, arguments.device, dtype)
        for measurement in chosen:
            if arguments.profile:
                profile(world, measurement, scale)
                continue
            found, more = measure(world, measurement, scale)
            rows += found
            details += more
    if arguments.profile:
        return 0
    settings = {"shape": asdict(shape), "scale": asdict(scale), "threads": arguments.threads}
    report(rows, settings | {"device": arguments.device}, arguments.json, details)
    return 1 if any(row.met is False for row in rows) else 0


def select(names: Sequence[str]) -> list[Measurement]:
    """The measurements that give the rows (or have the names) in `names`; all without names.
    Raises SystemExit for a name that nobody knows."""
    known = {m.name: m for m in MEASUREMENTS}
    known |= {row.name: m for m in MEASUREMENTS for row in m.rows}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no such row: {', '.join(unknown)}; one of {', '.join(known)}")
    return [m for m in MEASUREMENTS if not names or any(known[name] is m for name in names)]


def measure(world: World, measurement: Measurement, scale: Scale) -> tuple[list[Row], list[Row]]:
    """One race: (rows, details)."""
    suffix = SUFFIX[str(world.dtype).removeprefix("torch.")]
    began = time.monotonic()
    with ExitStack() as stack:
        entrants = measurement.entrants(world, scale, stack)
        for entrant in entrants.values():
            stack.callback(entrant.close)
        results = race(entrants, measurement.rounds(scale), world.clock)
    rows = []
    for ratio in measurement.rows:
        target = ratio.targets and ratio.targets[bool(suffix)]
        rows.append(Row(ratio.name + suffix, ratio.value(results), "x", target))
    details = []
    for name, runs in results.items():
        details.append(Row(f"{name}_tokens{suffix}", runs.tokens, "tokens/s"))
        facts = {"experts": runs.experts, **entrants[name].facts()}
        details += [Row(f"{name}_{what}{suffix}", n, what) for what, n in facts.items() if n]
    seconds = time.monotonic() - began
    shown = ", ".join(f"{row.name} {row.value:.4g}" for row in (*rows, *details))
    sys.stderr.write(f"[{seconds:4.0f} s] {shown}\n")
    return rows, details


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--quick", action="store_true", help="little of everything, in minutes")
    parser.add_argument("--dtype", choices=[*SUFFIX, "both"], default="both")
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], help="these rows' races")
    parser.add_argument("--profile", metavar="ROW", help="where its entrants spend their time")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

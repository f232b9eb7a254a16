"""The mixture gates beside the papers' baselines, on the zoo, through the product's own parts.

    python -m benchmarks.method [--json FILE] [--figure PNG] [--seeds 0,1,2] [--quick]

Every method × {iid, unseen wordings, own adapter masked} × k ∈ {1, 3, 5}: exact match in per cent,
the mean over tasks. Encoder, affinities, adapter vectors, index, engine, gates and router training
are the product's; only AdapterSoup, the MoE task gate and Arrow are made here (`task_gate`,
`arrow`). Routers and encoders are trained here, once a seed; a router sees one half of the
adapters, then the other. The cascade is asked of the engine end to end once and must equal what the
table of single answers gives. Nothing is chosen by the test prompts.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.method.figure import draw
from benchmarks.method.panels import panels
from benchmarks.method.parts import KS, Scale, measure_all
from benchmarks.method.retrievers import DEFAULT
from benchmarks.method.rows import details, summary
from benchmarks.method.table import table
from benchmarks.report import report

NOTE: Final = (
    "Grey: published methods. Blue: RAMoLE, part by part, its default in bold. Mean over tasks, "
    "k = 3; lines: 95 % bootstrap over tasks."
)
QUICK: Final = Scale(per_task=4, router_steps=10, encoder_steps=3)


def main() -> int:
    """Runs the benchmark; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows, machine and settings there")
    parser.add_argument("--figure", type=Path, help="write the README's figure there (PNG)")
    parser.add_argument("--seeds", default="0,1,2", help="of routers and encoders (default 0,1,2)")
    parser.add_argument("--dev", action="store_true", help="development prompts: to choose by")
    parser.add_argument("--quick", action="store_true", help="little of everything: a trial run")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (default 2)")
    arguments = parser.parse_args()
    seeds = [0] if arguments.quick else [int(seed) for seed in arguments.seeds.split(",")]
    scale = QUICK if arguments.quick else Scale("dev" if arguments.dev else "test")
    board = measure_all(scale, seeds, arguments.jobs)
    rows = list(summary(board, DEFAULT))
    settings = {"seeds": seeds, "k": KS, "default": asdict(DEFAULT), **asdict(scale)}
    counts = {"prompts": len(board.zoo.cases), "adapters": len(board.zoo.adapters)}
    sys.stdout.write(table(board) + "\n")
    settings |= counts | {"jobs": arguments.jobs}
    report(rows, settings, arguments.json, list(details(board)))
    if arguments.figure is not None:
        draw(panels(board, DEFAULT), arguments.figure, NOTE)
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

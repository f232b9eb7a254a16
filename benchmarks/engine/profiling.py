"""Where the entrants of a race spend their time, by torch's profiler."""

import sys
from contextlib import ExitStack
from itertools import islice
from typing import Final

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.engine.measurements import Measurement
from benchmarks.engine.sizes import Scale
from benchmarks.engine.world import World

OPERATORS: Final = 25
STEPS: Final = 24  # the first of each: a profile of a long run outgrows the memory


def profile(world: World, measurement: Measurement, scale: Scale) -> None:
    """Prints one table for the beginning of every entrant's run, alone."""
    on_cuda = world.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with ExitStack() as stack:
        for name, entrant in measurement.entrants(world, scale, stack).items():
            stack.callback(entrant.close)
            with torch_profile(activities=activities) as profiler:
                for _ in islice(entrant.run(), STEPS):
                    pass
            order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=OPERATORS)
            sys.stdout.write(f"{name}, {world.dtype}\n{table}\n")

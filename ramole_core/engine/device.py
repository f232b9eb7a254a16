"""Which device the model runs on, and in which number format, with the reason for both.

A format that was not asked for is what the device does well: bfloat16 on CUDA, float16 where CUDA
has no bfloat16. A CPU computes in float32, in which answers do not depend on their neighbours in
the batch; in bfloat16 only when it multiplies matrices in that format and the model is wide enough
to gain from it. The choice follows from device and model alone: nothing is timed, so that workers
on like machines choose alike.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

import torch

from ramole_core.errors import ConfigError
from ramole_core.settings import Settings

# Hidden width from which the linears of a step gain from bfloat16 on a CPU with AMX. Speed against
# float32 (torch 2.13, 1 and 2 cores, 32 rows, linears D -> D and D -> 4 D): D = 128 0.4 to 1.5,
# 256 0.9 to 3.4, 512 2.3 to 3.5, 1024 3.3 to 4.4, 2048 4.0 to 4.3. A lone row gains from 2048 on.
MIN_BFLOAT16_WIDTH: Final = 512

# torch's name of a CPU's matrix instructions -> theirs. AVX512_BF16, dot products of vectors, is
# not among them: by itself it ran the same linears at 0.4 to 1.0 of float32's speed.
MATRIX_INSTRUCTIONS: Final = {"amx_bf16": "AMX", "bf16": "Arm BF16"}


def choose_device(
    settings: Settings, hidden_width: Callable[[], int]
) -> tuple[torch.device, torch.dtype, str]:
    """Device, number format and the reason for both. Raises ConfigError.

    `hidden_width` gives the model's, 0 when it is not known; called only where it matters.
    """
    device, why = _device(settings.device)
    if settings.dtype != "auto":
        return device, getattr(torch, settings.dtype), f"{why}; RAMOLE_DTYPE={settings.dtype}"
    dtype, reason = _auto_dtype(device, hidden_width)
    return device, dtype, f"{why}; {reason}"


def _device(word: str) -> tuple[torch.device, str]:
    has_cuda = torch.cuda.is_available()
    if word == "auto":
        word, why = ("cuda", "CUDA found") if has_cuda else ("cpu", "no CUDA found")
    else:
        why = f"RAMOLE_DEVICE={word}"
    try:
        device = torch.device(word)
    except RuntimeError as e:
        raise ConfigError(f"RAMOLE_DEVICE={word!r}: use auto, cpu, cuda or cuda:1 …") from e
    if device.type == "meta":
        raise ConfigError(f"RAMOLE_DEVICE={word!r} computes nothing: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"RAMOLE_DEVICE={word!r}: {torch.cuda.device_count()} CUDA devices found; "
            "use auto or cpu"
        )
    return device, why


def num_cpus() -> int:
    """Those that this process may use, as far as the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _auto_dtype(device: torch.device, hidden_width: Callable[[], int]) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current one
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "bfloat16, supported by the device"
        return torch.float16, "float16, the device has no bfloat16"
    exact = "float32, the exact format: "
    if device.type != "cpu":
        return torch.float32, exact + "the device is neither CUDA nor a CPU"
    instructions = _matrix_instructions()
    if not instructions:
        return torch.float32, exact + "the CPU has no bfloat16 matrix instructions"
    width = hidden_width()
    if width < MIN_BFLOAT16_WIDTH:
        found = f"the model is {width} wide" if width else "the model's width is not known"
        return torch.float32, f"{exact}{found}, bfloat16 gains from {MIN_BFLOAT16_WIDTH} on"
    return torch.bfloat16, f"bfloat16, which the CPU multiplies ({instructions}), width {width}"


def _matrix_instructions() -> str:
    """The CPU's bfloat16 matrix instructions as far as torch uses them; empty: it has none."""
    if not torch.backends.mkldnn.is_available():  # oneDNN, whose kernels they are
        return ""
    # Older versions of torch cannot tell.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return next((word for name, word in MATRIX_INSTRUCTIONS.items() if found.get(name)), "")

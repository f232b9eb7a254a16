"""What went wrong in a step, without the exception: its frames would keep the batch's tensors."""

from dataclasses import dataclass
from typing import Final

import torch

from ramole_core.errors import PromptError, UnavailableError

NO_MEMORY: Final = ("DefaultCPUAllocator", "ALLOC_FAILED")  # in RuntimeErrors


@dataclass(frozen=True)
class Failure:
    """An exception's kind and message."""

    out_of_memory: bool
    device_lost: bool  # no later call on the device can work: only a new process helps
    message: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Reads `error`. The CPU's allocator and cuBLAS raise a plain RuntimeError and the driver
        an AcceleratorError when memory is out; their words tell."""
        text = f"{type(error).__name__}: {error}"
        on_device = isinstance(error, torch.AcceleratorError)
        out = (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or (isinstance(error, RuntimeError) and any(word in text for word in NO_MEMORY))
            or (on_device and "out of memory" in text)
        )
        return cls(out, on_device and not out, text.splitlines()[0][:300])

    @property
    def of_the_process(self) -> bool:
        """True when no single adapter or router is to blame."""
        return self.out_of_memory or self.device_lost

    def prompt_error(self, num_tokens: int) -> PromptError:
        """The error of a prompt of `num_tokens` (answer included) that failed by itself."""
        if self.out_of_memory:
            return PromptError(
                "out_of_memory",
                f"the prompt and its answer ({num_tokens} tokens) do not fit into memory, even "
                f"alone ({self.message}); shorten the prompt or lower max_new_tokens",
            )
        return PromptError("engine_error", f"the engine failed twice on it: {self.message}")


def as_prompt_error(error: Exception, code: str, what: str) -> PromptError | UnavailableError:
    """`error` as it is charged to a prompt: others than a PromptError get `code` and become the
    cause. An outage is nobody's fault: UnavailableError stays, for the caller to try again."""
    if isinstance(error, PromptError | UnavailableError):
        return error
    charged = PromptError(code, f"{what} cannot be loaded: {error or type(error).__name__}")
    charged.__cause__ = error
    return charged

"""How the engine divides the device's memory, decided once before the first prompt.

Behind the weights come the activations of a forward, then adapters with their packs and the keys
and values of the running prompts share what is left. The plan limits the tokens of a batch and the
bytes of adapters that nobody wants; their number is a setting, which the plan only judges. All are
upper bounds that fill as prompts come. Estimates: adapters of `TYPICAL_RANK` in every target
linear, activations by the widest linear. Memory that others take later is not foreseen: for that a
share stays free, and a batch that does not fit shrinks.
"""

from dataclasses import dataclass
from typing import Final

from ramole_core.engine.free_memory import free_bytes
from ramole_core.engine.model import NO_LIMIT, LoadedBase
from ramole_core.errors import ConfigError
from ramole_core.mole.packing import PACK_SHARE
from ramole_core.settings import Settings

# Of the free memory. A CPU's is also the encoder's, the page cache's and other processes'.
CUDA_SHARE: Final = 0.9
CPU_SHARE: Final = 0.5
ADAPTER_SHARE: Final = 0.5  # of what weights and activations leave, when keys and values want it
MAX_TOKENS: Final = 1 << 20  # of a batch when memory alone decides
LEAST_TOKENS: Final = 256  # a prompt with its answer that must fit
TYPICAL_RANK: Final = 16
# Tensors as wide as the widest linear that a forward holds at a time: Llama and GPT-NeoX held 3.3
# to 5 without adapters; the rest is for the mixture's columns.
ACTIVATION_WIDTHS: Final = 8
LOGIT_BYTES: Final = 24  # of one logit: float32, sorted, its int64 place, two probabilities


@dataclass(frozen=True)
class MemoryNeeds:
    """What the plan depends on besides the free memory."""

    weights_bytes: int  # on the device already
    activation_bytes: int  # of the largest forward
    token_bytes: int  # keys and values of one token, all layers together
    adapter_bytes: int  # one adapter, without packs
    batch_size: int
    bank_size: int
    context_tokens: int
    max_batch_tokens: int  # as set; 0: by the memory

    @property
    def most_tokens(self) -> int:
        """More than these are of no use, or not wanted."""
        return min(self.max_batch_tokens or MAX_TOKENS, self.batch_size * self.context_tokens)

    @property
    def pack_bytes(self) -> int:
        """Copies of one adapter in packs."""
        return int(self.adapter_bytes * PACK_SHARE)


@dataclass(frozen=True)
class MemoryPlan:
    """Who gets how many bytes. As text it is one line for the log."""

    needs: MemoryNeeds
    available_bytes: int  # weights and what was free beside them
    max_batch_tokens: int  # prompt and answer tokens of all running prompts, at most
    num_adapters: int  # with room in the bank, `bank_size` at most
    room_bytes: int  # for adapters, of whatever size, and their packs: all that the rest leaves

    @property
    def cache_bytes(self) -> int:
        """Keys and values."""
        return self.max_batch_tokens * self.needs.token_bytes

    @property
    def bank_bytes(self) -> int:
        """Adapters."""
        return self.num_adapters * self.needs.adapter_bytes

    @property
    def packs_bytes(self) -> int:
        """Adapters side by side, as batches use them."""
        return self.num_adapters * self.needs.pack_bytes

    @property
    def max_bank_bytes(self) -> int:
        """What adapters may take when they are larger than the estimate."""
        return int(self.room_bytes / (1 + PACK_SHARE))

    @property
    def max_packs_bytes(self) -> int:
        """What packs may take then."""
        return self.room_bytes - self.max_bank_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, the weights included."""
        needs = self.needs
        adapters = self.bank_bytes + self.packs_bytes
        return needs.weights_bytes + needs.activation_bytes + self.cache_bytes + adapters

    @property
    def warnings(self) -> tuple[str, ...]:
        """The settings that the memory does not allow."""
        needs, found = self.needs, []
        if self.num_adapters < needs.bank_size:
            found.append(
                f"RAMOLE_BANK_SIZE={needs.bank_size}, but only {self.num_adapters} adapters of "
                f"rank {TYPICAL_RANK} fit: set it to that or free memory"
            )
        if needs.max_batch_tokens and self.max_batch_tokens < needs.most_tokens:
            found.append(
                f"RAMOLE_MAX_BATCH_TOKENS={needs.max_batch_tokens}, but only "
                f"{self.max_batch_tokens} tokens fit"
            )
        return tuple(found)

    def __str__(self) -> str:
        needs = self.needs
        parts = (
            (needs.weights_bytes, "weights"),
            (self.cache_bytes, f"{self.max_batch_tokens} tokens in {needs.batch_size} slots"),
            (self.bank_bytes, f"{self.num_adapters} adapters of rank {TYPICAL_RANK}"),
            (self.packs_bytes, "their packs"),
            (needs.activation_bytes, "activations"),
        )
        line = " + ".join(f"{what} {shown(num)}" for num, what in parts)
        total = f"{line} = {shown(self.total_bytes)} of {shown(self.available_bytes)}"
        return "; ".join((total, *self.warnings))


def memory_plan(
    base: LoadedBase, settings: Settings, token_bytes: int, forward_tokens: int
) -> MemoryPlan:
    """The plan for a loaded model; `forward_tokens` is the largest number of prompt tokens of one
    forward. Raises ConfigError."""
    needs = MemoryNeeds(
        weights_bytes=_weights_bytes(base),
        activation_bytes=_activation_bytes(base, settings.batch_size, forward_tokens),
        token_bytes=token_bytes,
        adapter_bytes=_adapter_bytes(base),
        batch_size=settings.batch_size,
        bank_size=settings.bank_size,
        context_tokens=base.context_tokens,
        max_batch_tokens=settings.max_batch_tokens,
    )
    share = CUDA_SHARE if base.device.type == "cuda" else CPU_SHARE
    return plan_memory(needs, free_bytes(base.device), share, str(base.device))


def plan_memory(needs: MemoryNeeds, free: int, share: float, device: str) -> MemoryPlan:
    """Divides `share` of the `free` bytes of `device`: activations first, then one prompt of
    LEAST_TOKENS; adapters, as many as are wanted, get what keys and values leave, and half of the
    rest where both want it.

    Raises ConfigError when not even that one prompt fits.
    """
    left = int(free * share) - needs.activation_bytes
    least = min(LEAST_TOKENS, needs.most_tokens)
    if left < least * needs.token_bytes:
        needed = needs.activation_bytes + least * needs.token_bytes
        raise ConfigError(
            f"{device}: {shown(free)} of memory are free beside the model, {share:.0%} of them for "
            f"prompts; one of {least} tokens needs {shown(needed)}: choose a smaller RAMOLE_MODEL "
            "or RAMOLE_BATCH_SIZE, RAMOLE_DTYPE=bfloat16, or free memory"
        )
    for_tokens = max(left - int(left * ADAPTER_SHARE), least * needs.token_bytes)
    for_tokens = min(for_tokens, needs.most_tokens * needs.token_bytes)
    per_adapter = needs.adapter_bytes + needs.pack_bytes
    for_adapters = min(left - for_tokens, needs.bank_size * per_adapter)
    tokens = min(needs.most_tokens, (left - for_adapters) // needs.token_bytes)
    return MemoryPlan(
        needs,
        available_bytes=needs.weights_bytes + free,
        max_batch_tokens=tokens,
        num_adapters=for_adapters // per_adapter,
        room_bytes=left - tokens * needs.token_bytes,
    )


def shown(num_bytes: int) -> str:
    """In GiB or MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _weights_bytes(base: LoadedBase) -> int:
    tensors = [*base.model.parameters(), *base.model.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _adapter_bytes(base: LoadedBase) -> int:
    sides = sum(sum(shape) for shape in base.targets.values())  # D_out + D_in of every linear
    return sides * TYPICAL_RANK * base.dtype.itemsize


def _activation_bytes(base: LoadedBase, batch_size: int, forward_tokens: int) -> int:
    num_rows = forward_tokens + batch_size
    widest = max(max(shape) for shape in base.targets.values())
    vocabulary = base.num_embeddings if base.num_embeddings < NO_LIMIT else 0
    # Models that cannot be asked for the logits of some rows give those of all.
    logit_rows = 0 if "logits_to_keep" in base.forward_names else num_rows
    return (
        num_rows * widest * ACTIVATION_WIDTHS * base.dtype.itemsize
        + batch_size * vocabulary * LOGIT_BYTES
        + logit_rows * vocabulary * base.dtype.itemsize
    )

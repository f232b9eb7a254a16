"""A program: compiles the fused kernels for GPUs that need not be here, as the launcher calls them.

What the interpreter lets pass, the compiler may refuse. Needs no device and no C compiler.
"""

from itertools import product

from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ramole_core.mole import triton_kernels as kernels

GPUS = ((80, "fp32"), (90, "bf16"))  # compute capability, number format
CONSTANTS = {
    "M": kernels.NUM_ROWS,
    "C": kernels.NUM_COLUMNS,
    "R": kernels.NUM_RANKS,
    "P": kernels.NUM_EXPERTS,
}
TYPES = {  # all others are float32
    "product": "*{dtype}",
    "z": "*{dtype}",
    "begins": "*i32",
    "foreign": "*u1",
    "routed": "*u1",
}
# Which optional tensors are missing.
LACKING = {
    kernels.expert_logits: ((), ("foreign",)),
    kernels.mixed_columns: ((), ("foreign", "routed"), ("logits", "alpha", "routed")),
}


def source(kernel, dtype, lacking):
    """The kernel's source with the types that its arguments have at run time."""
    constants = {name: value for name, value in CONSTANTS.items() if name in kernel.arg_names}
    constants |= dict.fromkeys(lacking)

    def type_of(name):
        if name in constants:
            return "constexpr"
        size = name.startswith("num_") or name == "router_rank"
        return "i32" if size else TYPES.get(name, "*fp32").format(dtype=dtype)

    return ASTSource(kernel, {name: type_of(name) for name in kernel.arg_names}, constants)


def main():
    for (capability, dtype), (kernel, variants) in product(GPUS, LACKING.items()):
        for lacking in variants:
            built = build(source(kernel, dtype, lacking), GPUTarget("cuda", capability, 32))
            assert "tf32" not in built.asm["ptx"], "scores are float32"
            assert built.asm["cubin"]
    print("built")


if __name__ == "__main__":
    main()

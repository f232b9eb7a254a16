"""The fused kernels against the formula in torch, and when the layer takes them."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ramole_core.mole import kernels, layer
from ramole_core.mole.gates import Mix
from ramole_core.mole.plan import Segment

from .kernel_cases import CPU, SHAPES, Case, Shape, check_all

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def run_alone(module, *arguments, **variables):
    """What a program of this folder prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.unit.mole.{module}", *arguments],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout.strip()


# The numbers


@needs_triton
def test_in_tritons_interpreter_the_kernels_equal_the_formula():
    num_random = 8
    found = run_alone("kernel_cases", str(num_random), TRITON_INTERPRET="1")
    assert found == f"{len(SHAPES) + num_random} cases agree"


@needs_triton
def test_the_kernels_compile_for_gpus(tmp_path):
    found = run_alone("kernel_builds", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert found == "built"


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_the_kernels_equal_the_formula():
    device = torch.device("cuda", torch.cuda.current_device())
    assert kernels.compiles(device)
    check_all(device, 60)


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_the_layer_takes_them_unless_it_is_trained():
    case = Case(Shape(40, 5), seed=1)
    device = torch.device("cuda", torch.cuda.current_device())
    group, segment = case.group(device), case.segment(device)
    x = case.x.to(device).requires_grad_()
    trained = layer.mixed_columns(x, group, segment)
    assert trained.grad_fn is not None
    with torch.no_grad():
        assert kernels.usable(x, segment)
        found = layer.mixed_columns(x, group, segment)
    torch.testing.assert_close(found, trained.detach(), rtol=1e-3, atol=1e-4)


# When they are taken


def segment_of(gate):
    [ref, *_] = refs = Case(SHAPES[1], 0).refs
    packed = SimpleNamespace(experts=tuple(refs), groups={})
    return Segment.of(0, [Mix(gate, (ref,))], [2], None, packed, CPU)


@pytest.fixture
def on_gpu(monkeypatch):
    """An input on a GPU where triton works."""
    monkeypatch.setattr(kernels, "compiles", lambda device: True)
    return SimpleNamespace(is_cuda=True, device="cuda:0")


def test_neither_cpus_nor_training_nor_gate_fusion_take_them(on_gpu):
    with torch.inference_mode():
        assert kernels.usable(on_gpu, segment_of("mixture"))
        assert not kernels.usable(torch.ones(2, 2), segment_of("mixture"))
        assert not kernels.usable(on_gpu, segment_of("fusion"))
    assert not kernels.usable(on_gpu, segment_of("mixture"))


def test_nor_does_a_gpu_where_triton_fails(on_gpu, monkeypatch):
    monkeypatch.setattr(kernels, "compiles", lambda device: False)
    with torch.inference_mode():
        assert not kernels.usable(on_gpu, segment_of("mixture"))


@pytest.mark.parametrize("usable", [True, False])
def test_the_layer_hands_over_its_product(usable, monkeypatch):
    case, handed = Case(SHAPES[0], 0), []
    group, segment = case.group(CPU), case.segment(CPU)
    monkeypatch.setattr(kernels, "usable", lambda x, segment: usable)
    monkeypatch.setattr(kernels, "mixed_columns", lambda *given: handed.append(given) or "z")
    found = layer.mixed_columns(case.x, group, segment)
    if not usable:
        assert handed == [] and found.shape[2] == len(case.x)
        return
    [(product, *others)] = handed
    assert found == "z" and others == [group, segment]
    torch.testing.assert_close(product, torch.mm(group.a, case.x.T))


def broken(*args):
    raise RuntimeError("Failed to find C compiler")


@pytest.mark.parametrize(
    ("spec", "trial", "works", "said"),
    [
        (None, broken, False, "no triton"),
        ("here", broken, False, "Failed to find C compiler"),
        ("here", lambda device: False, False, "wrong"),
        ("here", lambda device: True, True, ""),
    ],
)
def test_a_gpu_is_tried_once(spec, trial, works, said, monkeypatch, caplog):
    tried = []
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec)
    monkeypatch.setattr(kernels, "_trial", lambda device: tried.append(device) or trial(device))
    caplog.set_level("INFO", kernels.__name__)
    kernels.compiles.cache_clear()
    assert [kernels.compiles("cuda:7"), kernels.compiles("cuda:7")] == [works, works]
    kernels.compiles.cache_clear()
    assert len(tried) == (spec is not None)
    assert len(caplog.records) == (not works) and said in caplog.text

"""Free memory: the machine, its control groups and CUDA, as the kernel's files tell it."""

from pathlib import Path

import pytest
import torch

from ramole_core.engine.free_memory import free_bytes

CPU = torch.device("cpu")
MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 900 kB\nHugePages_Total: 0\n"
MACHINE = 900 * 1024


@pytest.fixture
def root(tmp_path):
    """A function that writes files below a root; a machine with 900 kB available to begin with."""

    def write(**files):
        for path, text in files.items():
            place = tmp_path / path.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path

    write(proc__meminfo=MEMINFO)
    return write


def group(root: Path, folder: str, **files: str) -> None:
    place = root / "sys/fs/cgroup" / folder
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


def v2(limit: str, usage: int, inactive: int = 0, high: str = "max") -> dict[str, str]:
    return {
        "memory__max": f"{limit}\n",
        "memory__high": f"{high}\n",
        "memory__current": f"{usage}\n",
        "memory__stat": f"anon 5\ninactive_file {inactive}\nactive_file 7\n",
    }


def v1(limit: int, usage: int, inactive: int) -> dict[str, str]:
    return {
        "memory__limit_in_bytes": f"{limit}\n",
        "memory__usage_in_bytes": f"{usage}\n",
        "memory__stat": f"inactive_file 3\ntotal_inactive_file {inactive}\n",
    }


def test_a_machine_without_groups_gives_what_it_has_available(root):
    assert free_bytes(CPU, root()) == MACHINE
    assert free_bytes(CPU, root(proc__self__cgroup="0::/\n")) == MACHINE


def test_without_proc_all_memory_counts(tmp_path):
    assert free_bytes(CPU, tmp_path) >= free_bytes(CPU) > 0


def test_a_container_s_own_group_limits(root):
    top = root(proc__self__cgroup="0::/\n")
    group(top, "", **v2("500000", 300_000, inactive=50_000))
    assert free_bytes(CPU, top) == 250_000
    group(top, "", **v2("500000", 300_000, inactive=50_000, high="400000"))
    assert free_bytes(CPU, top) == 150_000
    group(top, "", **v2("500000", 600_000))
    assert free_bytes(CPU, top) == 0
    group(top, "", **v2("max", 600_000))
    assert free_bytes(CPU, top) == MACHINE


def test_every_group_around_the_process_limits(root):
    top = root(proc__self__cgroup="0::/user.slice/ramole.service\n")
    group(top, "user.slice/ramole.service", **v2("max", 1))
    assert free_bytes(CPU, top) == MACHINE
    group(top, "user.slice", **v2("800000", 100_000))
    assert free_bytes(CPU, top) == 700_000
    group(top, "user.slice/ramole.service", **v2("300000", 100_000))
    assert free_bytes(CPU, top) == 200_000


@pytest.mark.parametrize("path", ["/docker/0123", "/../../docker/0123"])
def test_a_path_of_the_host_is_no_harm_inside_a_container(root, path):
    top = root(proc__self__cgroup=f"0::{path}\n")
    group(top, "", **v2("400000", 100_000))
    (top / "docker").mkdir()
    assert free_bytes(CPU, top) == 300_000


def test_groups_of_version_1_count_what_lies_below_them(root):
    top = root(proc__self__cgroup="5:cpu,cpuacct:/a\n4:hugetlb,memory:/a\n1:name=systemd:/\n0::/\n")
    group(top, "memory", **v1(9223372036854771712, 10**9, 0))
    assert free_bytes(CPU, top) == MACHINE
    group(top, "memory/a", **v1(500_000, 200_000, 40_000))
    assert free_bytes(CPU, top) == 340_000
    group(top, "a", **v2("1000", 0))  # a folder of another controller
    assert free_bytes(CPU, top) == 340_000


def test_mapped_weight_files_are_not_free(root):
    top = root(
        proc__self__maps=(
            "10000-20000 r--p 00000000 fe:00 7                  /models/a b/w.safetensors\n"
            "30000-38000 r--p 00000000 fe:00 7                  /models/a b/w.safetensors\n"
            "40000-44000 r--p 00000000 fe:00 8                  /models/v.safetensors\n"
            "50000-90000 r-xp 00000000 fe:00 9                  /usr/lib/libtorch.so\n"
            "90000-a0000 rw-p 00000000 00:00 0 \n"
        )
    )
    assert free_bytes(CPU, top) == MACHINE - 0x10000 - 0x4000
    huge = "0-fffffffff r--p 00000000 fe:00 8 /models/v.safetensors\n"
    assert free_bytes(CPU, root(proc__self__maps=huge)) == 0


def test_weights_of_a_model_that_are_mapped_are_seen(tmp_path):
    """As safetensors loads them on a CPU: the file stays mapped as long as the tensors live."""
    from safetensors.torch import load_file, save_file

    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text("MemAvailable: 999999999 kB\n")
    (proc / "self").symlink_to("/proc/self")
    before = free_bytes(CPU, tmp_path)
    save_file({"w": torch.zeros(1 << 18)}, tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    taken = before - free_bytes(CPU, tmp_path)
    assert tensors["w"].nbytes <= taken <= tensors["w"].nbytes + (1 << 16)
    del tensors


def test_on_cuda_what_torch_keeps_for_itself_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_bytes(torch.device("cuda:1")) == 1300

"""On a CPU, freed memory stays in the process, and waiting threads sleep soon: by pages and by settings, not in seconds."""

import ctypes
import os
import subprocess
import sys

import pytest
from conftest import ROOT

REPEATED = """
import resource, sys, torch
from dp2osr.device import compute_device
torch.set_num_threads(1)
image = torch.rand(1, 64, 512, 512)  # 64 MB: above 32 MB glibc adapts no more
def taken():
    for _ in range(10):
        torch.relu(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.relu(image)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * image.nbytes)
before = taken()
assert compute_device().type == "cpu"
print(before, taken())
"""


def pages_taken(**settings):
    """Share of a tensor's memory that each of twenty results of its size takes from the kernel, before and after `compute_device`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **settings}
    done = subprocess.run([sys.executable, "-c", REPEATED], env=environment, capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
def test_a_cpus_freed_memory_is_used_again():
    before, told = pages_taken()
    assert before > 0.8  # glibc's own way: 64 MB go back to the kernel each time
    assert told < 0.2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
@pytest.mark.parametrize("name, value", [("MALLOC_MMAP_THRESHOLD_", "65536"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536")])
def test_a_users_own_settings_of_the_allocator_stay(name, value):
    assert min(pages_taken(**{name: value})) > 0.8


@pytest.mark.parametrize(
    ("own", "spins"),
    [({}, "5000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "9"}, "9")],
    ids=["none", "policy", "count"],
)
def test_waiting_threads_of_a_program_sleep_soon_unless_the_user_says_how(own, spins):
    code = "import os; from dp2osr.errors import run; run(lambda: print(os.environ.get('GOMP_SPINCOUNT')))"
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**kept, "PYTHONPATH": str(ROOT), **own}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins

"""The preloaded BLAS, in processes of its own."""

import os
import subprocess
import sys

PROBE = """
import ctypes, os, sys, threading
from rvcd.mlx_engine import blas
print(blas.preload())
import mlx.core as mx
print(blas.preload())
print(os.environ.get("OMP_NUM_THREADS"))
if sys.platform == "linux":
    threads = []
    ask = ctypes.CDLL(None).omp_get_max_threads
    worker = threading.Thread(target=lambda: threads.append(ask()))
    worker.start(); worker.join()
    print(threads[0])
    print(bool(ctypes.CDLL(None).openblas_get_config))
"""


def probe(**environment: str) -> list[str]:
    """What the probe prints, in an environment without settings for OpenMP but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", PROBE]
    run = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_a_product_stays_on_the_thread_that_asks_for_it() -> None:
    """On Linux OpenBLAS is loaded once, before MLX, with one thread per caller; nothing else changes."""
    if sys.platform != "linux":
        assert probe() == ["False", "False", "None"]
        return
    assert probe() == ["True", "False", "None", "1", "True"]
    assert probe(OMP_NUM_THREADS="3")[2:4] == ["3", "1"]

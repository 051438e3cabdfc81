"""A fast BLAS for MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, some fifty times slower in a matrix product than the
OpenBLAS inside the faiss-cpu wheel. Loading that one with global symbols *before* `mlx.core` makes
MLX resolve `cblas_sgemm` to it. Everywhere else, or where the library is missing, nothing happens.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the order in which they depend on each other.
_LIBRARIES = ("libquadmath", "libgfortran", "libgomp", "libopenblas")


def preload() -> bool:
    """Load OpenBLAS for MLX; say whether MLX will use it. Must run before `mlx.core` is imported."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        with _one_thread_each():
            loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in _bundled_libraries()]
    except OSError:
        return False
    return bool(loaded)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep a matrix product on the thread that asks for it.

    The engine computes tiles side by side; threads inside each product would only wait for each other (six
    times slower on two cores). OpenMP reads its setting once, while it is loaded.
    """
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _bundled_libraries() -> list[Path]:
    spec = importlib.util.find_spec("faiss")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]).parent / "faiss_cpu.libs"
    found = [sorted(folder.glob(f"{name}*.so*")) for name in _LIBRARIES]
    return [paths[0] for paths in found if paths] if found[-1] else []

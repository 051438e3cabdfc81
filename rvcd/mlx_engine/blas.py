"""A fast BLAS for MLX's CPU backend on Linux.

MLX's Linux wheels link the reference BLAS, some fifty times slower in a matrix product than the
OpenBLAS inside the faiss-cpu wheel. Loading that one with global symbols *before* `mlx.core` makes
MLX resolve `cblas_sgemm` to it. Everywhere else, or where the library is missing, nothing happens.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

# In the order in which they depend on each other.
_LIBRARIES = ("libquadmath", "libgfortran", "libgomp", "libopenblas")


def preload() -> bool:
    """Load OpenBLAS for MLX; say whether MLX will use it. Must run before `mlx.core` is imported."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    library = None
    for path in _bundled_libraries():
        try:
            library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            return False
    if library is None:
        return False
    # The engine computes tiles side by side, one thread each; threads inside a product would only wait for each other.
    library.openblas_set_num_threads(1)
    return True


def _bundled_libraries() -> list[Path]:
    spec = importlib.util.find_spec("faiss")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]).parent / "faiss_cpu.libs"
    found = [sorted(folder.glob(f"{name}*.so*")) for name in _LIBRARIES]
    return [paths[0] for paths in found if paths] if found[-1] else []

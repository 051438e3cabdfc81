"""RVC inference in MLX.

`Engine` and `import_checkpoint` are resolved on first use, so that reading a checkpoint's header or
listing voices never loads MLX.
"""

from typing import TYPE_CHECKING, Any

from rvcd.mlx_engine import blas

if TYPE_CHECKING:
    from rvcd.mlx_engine.convert import import_checkpoint
    from rvcd.mlx_engine.engine import Engine

__all__ = ["Engine", "import_checkpoint"]


def __getattr__(name: str) -> Any:
    blas.preload()
    if name == "Engine":
        from rvcd.mlx_engine.engine import Engine

        return Engine
    if name == "import_checkpoint":
        from rvcd.mlx_engine.convert import import_checkpoint

        return import_checkpoint
    raise AttributeError(name)

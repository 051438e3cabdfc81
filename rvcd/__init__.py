"""rvcd converts vocal stems in place, with RVC voices kept warm in MLX."""

__version__ = "0.1.0"

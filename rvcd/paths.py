"""Where rvcd keeps its own files: per-user folders by platform convention, or all under `RVCD_HOME`.

Functions, not constants: the environment is read when asked, and no folder is made by asking.
"""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Voices, base models and state of this user."""
    override = os.environ.get("RVCD_HOME")
    if override:
        return Path(override).expanduser().absolute()
    return Path(platformdirs.user_data_dir("rvcd", appauthor=False))


def voices_dir() -> Path:
    """Converted voices, one file each."""
    return home() / "voices"


def models_dir() -> Path:
    """Converted content encoders and pitch models, one file each."""
    return home() / "models"


def cache_dir() -> Path:
    """Conversions of checkpoints that were named by path instead of imported; safe to delete."""
    if os.environ.get("RVCD_HOME"):
        return home() / "cache"
    return Path(platformdirs.user_cache_dir("rvcd", appauthor=False))

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


def config_file() -> Path:
    """What the user configured, if it is there."""
    if os.environ.get("RVCD_HOME"):
        return home() / "rvcd.toml"
    return Path(platformdirs.user_config_dir("rvcd", appauthor=False)) / "rvcd.toml"


def journal_file() -> Path:
    """The daemon's memory of its jobs."""
    return home() / "journal.db"


def hot_folder() -> Path:
    """The hot folder if none is configured; macOS guards Desktop, Documents and Downloads against daemons."""
    if os.environ.get("RVCD_HOME"):
        return home() / "stems"
    return Path.home() / "Music" / "rvcd"


def logs_dir() -> Path:
    """Logs of the daemon: `~/Library/Logs/rvcd` on macOS, the XDG state folder on Linux."""
    if os.environ.get("RVCD_HOME"):
        return home() / "logs"
    return Path(platformdirs.user_log_dir("rvcd", appauthor=False))

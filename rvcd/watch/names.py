"""Which names in a hot folder are stems, and when two names mean one file."""

import os
import unicodedata
from pathlib import Path

STEM_SUFFIXES = frozenset((".wav", ".wave", ".bwf", ".aif", ".aiff", ".aifc", ".caf", ".rf64", ".w64", ".flac"))
_HIDDEN = (".", "~")


def is_stem(name: str) -> bool:
    """Whether a file of this name may be a stem.

    The last suffix decides, so drafts and caches that add one of their own are none: `lead.wav.part`,
    `lead.wav.reapeaks`, `lead.dup`. Hidden names (`.lead.wav`, `._lead.wav`, `~lead.wav`) are none either.
    """
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in STEM_SUFFIXES  # noqa: PTH122


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never looked at, such as our own `.rvcd`."""
    return name.startswith(_HIDDEN)


def fold(path: Path) -> str:
    """One spelling for all that may name the same file: composed characters (NFC) without case.

    Only for comparing: a file is opened by the name that its folder gave. On a volume that keeps two
    spellings apart they fold together, so nothing may be decided by a folded name alone where a wrong
    match would lose a stem.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", os.fspath(path)).casefold())

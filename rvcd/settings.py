"""How one stem is to be converted. Frozen, and checked when it is made."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from rvcd.errors import Code, RvcdError

F0Method = Literal["rmvpe", "yin"]
Search = Literal["exact", "ivf"]
Stereo = Literal["mid", "per-channel"]

_RANGES: dict[str, tuple[float, float]] = {
    "semitones": (-48.0, 48.0),
    "index_rate": (0.0, 1.0),
    "protect": (0.0, 0.5),
    "loudness": (0.0, 1.0),
    "speaker_id": (0, 2**31 - 1),
    "seed": (0, 2**63 - 1),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "f0_method": get_args(F0Method),
    "search": get_args(Search),
    "stereo": get_args(Stereo),
}


@dataclass(frozen=True)
class Settings:
    """What the singer wants. Raises `RvcdError("bad_setting")` for a value out of range."""

    semitones: float = 0.0
    """Transposition, fractions allowed."""
    index_rate: float = 0.75
    """How far content features lean on the voice's training features: 0 not at all, 1 fully."""
    protect: float = 0.33
    """Share of the retrieved features that unvoiced frames keep; 0.5 turns the shield off."""
    loudness: float = 0.75
    """How far the output follows the stem's loudness envelope: 0 not at all, 1 fully."""
    speaker_id: int = 0
    """Row of a multi-speaker voice."""
    f0_method: F0Method = "rmvpe"
    """`rmvpe` needs its model; `yin` needs none."""
    fill_unvoiced: bool = False
    """Interpolate f0 through unvoiced frames, as voices trained by the 2026 WebUI expect."""
    search: Search = "exact"
    """`exact` finds the true nearest neighbours; `ivf` searches as faiss and the index file say."""
    seed: int = 0
    """Same seed, same bytes."""
    stereo: Stereo = "mid"
    """True stereo: convert the middle once, or every channel by itself."""
    windows: tuple[float, float, float, float] | None = None
    """The reference's chunking seconds (pad, query, centre, max); only `convert_reference` reads it."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise RvcdError(Code.BAD_SETTING, f"{name} must be a number, not {value!r}.")
            if not (math.isfinite(value) and low <= value <= high):
                raise RvcdError(Code.BAD_SETTING, f"{name} must lie between {low} and {high}, not {value}.")
        for name in ("speaker_id", "seed"):
            if not isinstance(getattr(self, name), int):
                raise RvcdError(Code.BAD_SETTING, f"{name} must be a whole number, not {getattr(self, name)!r}.")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise RvcdError(
                    Code.BAD_SETTING, f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}."
                )
        self._check_windows()

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        if len(self.windows) != 4 or any(not (math.isfinite(w) and w > 0) for w in self.windows):
            raise RvcdError(
                Code.BAD_SETTING,
                f"windows must be four positive numbers of seconds (pad, query, centre, max), not {self.windows!r}.",
            )
        _, query, centre, _ = self.windows
        if query > centre:
            raise RvcdError(Code.BAD_SETTING, f"windows: query ({query}) must not exceed centre ({centre}).")


SETTING_NAMES = tuple(field.name for field in fields(Settings))

"""Stems on disk: read one with its format, write one in the format of another.

Nothing is lost on the way: integer stems are read so that writing them back gives the same bits, a
file appears whole under its name or not at all, and a peak that an integer format cannot hold lowers
the whole file, never clips it. Metadata chunks are not carried over.
"""

import contextlib
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import soundfile

from rvcd.errors import Code, RvcdError, write_error

MIN_SAMPLE_RATE = 8_000
MAX_SAMPLE_RATE = 192_000
MAX_SECONDS = 3 * 3600

# The first container of a suffix is the one written for a stem that comes in another.
CONTAINERS_OF_SUFFIX: dict[str, tuple[str, ...]] = {
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".wave": ("WAV", "WAVEX", "RF64"),
    ".bwf": ("WAV", "WAVEX", "RF64"),
    ".rf64": ("RF64",),
    ".w64": ("W64",),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
    ".caf": ("CAF",),
    ".flac": ("FLAC",),
}
_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FLOATS = ("FLOAT", "DOUBLE")
# libsndfile's ALAC encoder garbles packets that do not compress (seen with 1.2.2), so ALAC is written as PCM.
_PCM_OF_ALAC = {"ALAC_16": "PCM_16", "ALAC_20": "PCM_24", "ALAC_24": "PCM_24", "ALAC_32": "PCM_32"}
_NEEDS_DOUBLE = ("PCM_32", "ALAC_32", "DOUBLE")
_MAX_RIFF_BYTES = 2**32 - 2**16
_BLOCK_FRAMES = 1 << 18
_BAD_HEADER_FIELD = 24  # libsndfile's SFE_BAD_SF_INFO: a rate or channel count of zero
_SET_ADD_PEAK_CHUNK = 0x1050  # libsndfile's SFC_SET_ADD_PEAK_CHUNK


@dataclass(frozen=True, eq=False)
class Stem:
    """One audio file: its samples and what is needed to write another one like it."""

    samples: np.ndarray
    """(frames, channels), full scale ±1: float64 for 32-bit integers and doubles, else float32."""
    sample_rate: int
    """Hz."""
    container: str
    """libsndfile's name of the file type: WAV, WAVEX, AIFF, FLAC, CAF, W64, RF64, OGG, MP3, ..."""
    subtype: str
    """libsndfile's name of the sample format: PCM_24, FLOAT, VORBIS, ..."""
    endian: str
    """FILE (the container's own), LITTLE or BIG."""

    @property
    def seconds(self) -> float:
        """Length of the stem."""
        return len(self.samples) / self.sample_rate


def read_stem(path: Path) -> Stem:
    """Read a stem of any format that libsndfile knows.

    Raises `RvcdError`: `not_found`, `unreadable_stem`, `empty_stem`, `bad_sample_rate`, `stem_too_long`,
    `not_finite`. Length and rate are judged by the header, before any sample is read.
    """
    _check_openable(path)
    try:
        with soundfile.SoundFile(os.fsencode(path.absolute())) as sound:
            _check_header(path, sound.frames, sound.samplerate)
            dtype = "float64" if sound.subtype in _NEEDS_DOUBLE else "float32"
            samples = sound.read(dtype=dtype, always_2d=True)
            stem = Stem(samples, sound.samplerate, sound.format, sound.subtype, sound.endian)
            promised_frames = sound.frames
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _reading_error(path, error) from error
    if len(samples) != promised_frames:
        raise RvcdError(
            Code.UNREADABLE_STEM,
            f"{path.name} is cut short: {len(samples)} of {promised_frames} frames are there; export it again.",
        )
    _check_finite(path, samples, stem.sample_rate)
    return stem


def write_stem(path: Path, samples: np.ndarray, like: Stem, *, seed: int = 0) -> float:
    """Write samples as a file with the rate, channels, container and subtype of another stem.

    `samples` is (frames,) or (frames, channels), as many of both as in `like`; the folder of `path` must
    exist, and a file at `path` is replaced once the new one is whole. Returns the gain that was applied,
    in dB: below 0 where an integer format could not hold the peak, and the whole file was lowered to just
    below full scale.

    A suffix that belongs to another container chooses that container; a lossy or rare subtype becomes
    24-bit PCM. Reduction to 16 bits or fewer is dithered (TPDF, from `seed`), except for digital silence
    and for samples that fit the grid already.

    Raises `RvcdError`: `bad_setting` (a suffix or format that cannot be written), `not_finite`, `not_writable`,
    `disk_full`.
    """
    samples = samples.reshape(len(samples), -1)
    assert samples.shape == like.samples.shape, (samples.shape, like.samples.shape)
    _check_finite(path, samples, like.sample_rate)
    container, subtype, endian = output_format(path, like)
    gain = 1.0
    blocks = _blocks(samples)
    if subtype in _INTEGER_BITS:
        gain = _safe_gain(samples, _INTEGER_BITS[subtype])
        blocks = _integer_blocks(samples, _INTEGER_BITS[subtype], gain, seed)
    try:
        with _Draft(path) as draft:
            with _encoder(draft, path, container, subtype, endian, like) as sound:
                for block in blocks:
                    sound.write(block)
            draft.publish(len(samples))
    except OSError as error:
        raise write_error(error, path) from error
    return 20 * math.log10(gain)


def output_suffix(path: Path) -> str:
    """Suffix of what is made from a stem: its own if we can write that container, else `.wav`."""
    return path.suffix if path.suffix.lower() in CONTAINERS_OF_SUFFIX else ".wav"


def check_output_suffix(path: Path) -> tuple[str, ...]:
    """Containers that the suffix of a file to be written stands for. Raises `RvcdError`: `bad_setting`."""
    try:
        return CONTAINERS_OF_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(CONTAINERS_OF_SUFFIX)
        raise RvcdError(
            Code.BAD_SETTING, f"The output {path.name} must be lossless; end its name in one of {known}."
        ) from None


def output_format(path: Path, like: Stem) -> tuple[str, str, str]:
    """Container, subtype and endianness of a stem written to `path` in the manner of another one.

    Raises `RvcdError`: `bad_setting`.
    """
    containers = check_output_suffix(path)
    subtype = _PCM_OF_ALAC.get(like.subtype, like.subtype)
    if like.container in containers:
        container, endian = like.container, like.endian
    else:
        container, endian = containers[0], "FILE"
    if subtype not in (*_INTEGER_BITS, *_FLOATS) or not soundfile.check_format(container, subtype, endian):
        subtype = "PCM_24"
    bytes_per_sample = {"FLOAT": 4, "DOUBLE": 8}.get(subtype) or _INTEGER_BITS[subtype] // 8
    if container in ("WAV", "WAVEX") and like.samples.size * bytes_per_sample > _MAX_RIFF_BYTES:
        container, endian = "RF64", "FILE"
    return container, subtype, endian


def _check_openable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise RvcdError(Code.NOT_FOUND, f"There is no file {path}.") from None
    except OSError as error:
        raise RvcdError(Code.UNREADABLE_STEM, f"{path} cannot be opened: {error.strerror}.") from error


def _check_header(path: Path, frames: int, sample_rate: int) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise RvcdError(
            Code.BAD_SAMPLE_RATE,
            f"{path.name} has a sample rate of {sample_rate} Hz; rvcd converts {MIN_SAMPLE_RATE} to "
            f"{MAX_SAMPLE_RATE} Hz.",
        )
    if frames == 0:
        raise RvcdError(Code.EMPTY_STEM, f"{path.name} holds no samples; is it still being written?")
    if frames > MAX_SECONDS * sample_rate:
        raise RvcdError(
            Code.STEM_TOO_LONG,
            f"{path.name} is {frames / sample_rate / 3600:.1f} hours long; split it into parts of at most "
            f"{MAX_SECONDS // 3600} hours.",
        )


def _reading_error(path: Path, error: Exception) -> RvcdError:
    if isinstance(error, soundfile.LibsndfileError) and error.code == _BAD_HEADER_FIELD:
        return RvcdError(
            Code.BAD_SAMPLE_RATE,
            f"The header of {path.name} gives a sample rate or channel count of 0; export it again.",
        )
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else "no known header"
    return RvcdError(Code.UNREADABLE_STEM, f"{path.name} is not audio that rvcd can read ({reason.rstrip('.')}).")


def _check_finite(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    for start, block in enumerate(_blocks(samples)):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            seconds = (start * _BLOCK_FRAMES + int(np.argmin(finite))) / sample_rate
            raise RvcdError(
                Code.NOT_FINITE, f"{path.name} has a sample that is no number (NaN or infinite) at {seconds:.3f} s."
            )


def _blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive blocks of frames, so that temporaries stay small beside a long stem."""
    for start in range(0, len(samples), _BLOCK_FRAMES):
        yield samples[start : start + _BLOCK_FRAMES]


def _safe_gain(samples: np.ndarray, bits: int) -> float:
    """Gain that brings the peak two steps below full scale (room for dither) if it does not fit, else 1."""
    full_scale = 2.0 ** (bits - 1)
    high = max(float(block.max()) for block in _blocks(samples)) * full_scale
    low = min(float(block.min()) for block in _blocks(samples)) * full_scale
    if round(high) <= full_scale - 1 and round(low) >= -full_scale:
        return 1.0
    return (full_scale - 3) / max(high, -low)


def _integer_blocks(samples: np.ndarray, bits: int, gain: float, seed: int) -> Iterator[np.ndarray]:
    """Blocks of int32 with the value in the upper `bits`, as libsndfile takes integers of any depth."""
    full_scale = 2.0 ** (bits - 1)
    dithered = bits <= 16 and not all(_on_grid(block * full_scale * gain) for block in _blocks(samples))
    random = np.random.default_rng(seed)
    for block in _blocks(samples):
        steps = block.astype(np.float64) * (full_scale * gain)
        if dithered:
            triangular = random.random(steps.shape) - random.random(steps.shape)
            steps += np.where(block == 0, 0.0, triangular)
        whole = np.clip(np.rint(steps), -full_scale, full_scale - 1)
        yield whole.astype(np.int32) << (32 - bits)


def _on_grid(steps: np.ndarray) -> bool:
    return np.array_equal(steps, np.rint(steps))


class _Draft:
    """A file beside its target that takes the target's place when it is whole, and vanishes otherwise.

    libsndfile writes through `write`, `seek` and `tell`. Its callbacks swallow exceptions, so the first
    one is kept in `failure` and raised by `_encoder`.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.rvcd")
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view and self.failure is None:
                view = view[os.write(self._fd, view) :]
        except BaseException as error:
            self.failure = error
        return len(data) - len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def publish(self, frames: int) -> None:
        """Make the draft the target, provided that it reads back as a file of that many frames."""
        os.fsync(self._fd)
        found = _frames_in(self._path)
        if found != frames:
            raise RvcdError(
                Code.NOT_WRITABLE,
                f"{self._target.name} came out with {found} of {frames} frames and was dropped; "
                "choose another format, such as .w64.",
            )
        if self._target.exists():
            shutil.copymode(self._target, self._path)
        self._path.replace(self._target)


@contextlib.contextmanager
def _encoder(
    draft: _Draft, path: Path, container: str, subtype: str, endian: str, like: Stem
) -> Iterator[soundfile.SoundFile]:
    """Open a libsndfile writer into the draft; raise what stopped the draft from being written."""
    channels = like.samples.shape[1]
    try:
        with soundfile.SoundFile(draft, "w", like.sample_rate, channels, subtype, endian, container) as sound:
            if subtype in _FLOATS and container in ("WAV", "WAVEX", "AIFF", "CAF"):
                _leave_out_peak_chunk(sound)
            yield sound
    except soundfile.LibsndfileError as error:
        if draft.failure is None:
            raise RvcdError(
                Code.BAD_SETTING,
                f"{path.suffix} cannot hold {channels} channels of {subtype} at {like.sample_rate} Hz; choose .wav.",
            ) from error
    except AssertionError:  # soundfile's way to say that fewer frames were written than given
        if draft.failure is None:
            raise
    if draft.failure is not None:
        raise draft.failure


def _frames_in(path: Path) -> int:
    try:
        frames: int = soundfile.info(path.absolute()).frames
    except soundfile.LibsndfileError:
        return 0
    return frames


def _leave_out_peak_chunk(sound: Any) -> None:
    """Omit the chunk that holds the time of writing: the same samples shall give the same bytes."""
    soundfile._snd.sf_command(sound._file, _SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)

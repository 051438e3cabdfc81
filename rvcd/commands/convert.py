"""`rvcd convert`: stems on disk through the engine into new files."""

import argparse
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from rvcd import mlx_engine, stems, voices
from rvcd.commands.output import DONE, FAILED, error_fields, print_error, print_json
from rvcd.commands.progress import OnProgress, showing_progress
from rvcd.containers import read_layout
from rvcd.errors import Code, RvcdError, write_error
from rvcd.mlx_engine.configs import VoiceConfig
from rvcd.mlx_engine.weights import is_converted, read_header
from rvcd.settings import SETTING_NAMES, Settings

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Result:
    """What became of one stem."""

    input: str
    output: str
    voice: str
    seconds_of_audio: float | None = None
    seconds_taken: float | None = None
    realtime_factor: float | None = None
    """Seconds taken for one second of audio."""
    gain_db: float | None = None
    """Below 0 where the file was lowered because its sample format could not hold the peak."""
    error: dict[str, str] | None = None


def run(arguments: argparse.Namespace) -> int:
    """Convert every stem, one after the other; one that fails does not stop the rest."""
    settings = Settings(**{name: getattr(arguments, name) for name in SETTING_NAMES if hasattr(arguments, name)})
    voice_path = _voice_path(arguments.voice)
    voice_name = _voice_name(voice_path)
    targets = _plan_targets(arguments.inputs, arguments.output, voice_name)
    converter = _Converter(arguments, settings, voice_path)
    results = []
    for source, target in zip(arguments.inputs, targets, strict=True):
        result = _result(converter, source, target, voice_name)
        results.append(result)
        if not arguments.json and result.error is None:
            print(_sentence(source, target, result), flush=True)  # noqa: T201
    if arguments.json:
        print_json([asdict(result) for result in results])
    return FAILED if any(result.error for result in results) else DONE


class _Converter:
    """One engine and one voice, for files in order."""

    def __init__(self, arguments: argparse.Namespace, settings: Settings, voice_path: Path) -> None:
        content_encoder = arguments.content_encoder or voices.find_model("content-encoder")
        pitch = arguments.pitch
        if pitch is None and settings.f0_method == "rmvpe" and _may_use_f0(voice_path):
            pitch = voices.find_model("pitch")

        self._settings = settings
        self._overwrite: bool = arguments.overwrite
        self._engine = mlx_engine.Engine(content_encoder=content_encoder, pitch=pitch, precision=arguments.precision)
        self._voice = self._engine.load_voice(voice_path, index=arguments.index)
        self._voice.check_speaker(settings.speaker_id)

    def convert(self, source: Path, target: Path, on_progress: OnProgress) -> tuple[float, float]:
        """Convert one file; return its length in seconds and the gain in dB."""
        self._check_target(target)
        _check_whole(source)
        stem = stems.read_stem(source)
        samples = stem.samples.astype(np.float32, copy=False)
        converted = self._engine.convert(samples, stem.sample_rate, self._voice, self._settings, on_progress)
        self._check_target(target)
        return stem.seconds, stems.write_stem(target, converted, stem, seed=self._settings.seed)

    def _check_target(self, target: Path) -> None:
        if target.exists() and not self._overwrite:
            raise RvcdError(
                Code.ALREADY_EXISTS, f"{target} exists already; choose another output or allow it with --overwrite."
            )
        if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
            raise RvcdError(Code.NOT_WRITABLE, f"{target.parent} is not a folder that can be written to.")


def _check_whole(source: Path) -> None:
    """Refuse a stem that was cut short, which reads as a shorter one."""
    try:
        promised = read_layout(source).end
    except RvcdError:
        return  # reading it will say what is wrong, if anything is
    if promised > source.stat().st_size:
        raise RvcdError(Code.UNREADABLE_STEM, f"{source} is cut short: its headers promise more; render it again.")


def _result(converter: _Converter, source: Path, target: Path, voice_name: str) -> Result:
    result = Result(str(source.absolute()), str(target.absolute()), voice_name)
    start = time.perf_counter()
    try:
        with showing_progress(source.name) as on_progress:
            seconds, gain_db = converter.convert(source, target, on_progress)
    except RvcdError as error:
        print_error(error, about=str(source))
        return replace(result, error=error_fields(error))
    taken = time.perf_counter() - start
    return replace(
        result, seconds_of_audio=seconds, seconds_taken=taken, realtime_factor=taken / seconds, gain_db=gain_db
    )


def _sentence(source: Path, target: Path, result: Result) -> str:
    sentence = f"{source} -> {target} ({result.seconds_of_audio:.1f} s of audio in {result.seconds_taken:.1f} s)"
    if result.gain_db:
        sentence += f", lowered by {-result.gain_db:.1f} dB because its sample format cannot hold the peak"
    return sentence


def _voice_path(name_or_path: str) -> Path:
    """Take what looks like a path as one, and look anything else up in the library."""
    path = Path(name_or_path)
    if os.sep not in name_or_path and path.suffix.lower() not in _CHECKPOINT_SUFFIXES:
        return voices.find_voice(name_or_path)
    if not path.exists():
        raise RvcdError(Code.UNKNOWN_VOICE, f"There is no voice file {path}.")
    return path


def _voice_name(path: Path) -> str:
    return read_header(path).name if is_converted(path) else path.stem


def _may_use_f0(path: Path) -> bool:
    config = read_header(path).config if is_converted(path) else None
    return config.uses_f0 if isinstance(config, VoiceConfig) else True


def _plan_targets(sources: list[Path], output: Path | None, voice_name: str) -> list[Path]:
    """Decide where each stem's conversion goes, and refuse what would lose a file before anything is done.

    Raises `RvcdError`: `bad_setting`, `not_writable`.
    """
    if output is not None and output.suffix and not output.is_dir():
        if len(sources) > 1:
            raise RvcdError(
                Code.BAD_SETTING, f"{output} names one file for {len(sources)} stems; name a folder that exists."
            )
        stems.check_output_suffix(output)
        targets = [output]
    else:
        if output is not None:
            _make_folder(output)
        label = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", voice_name)
        targets = [
            (output or source.parent) / f"{source.stem}.{label}{stems.output_suffix(source)}" for source in sources
        ]
    _refuse_collisions(sources, targets)
    return targets


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error


def _refuse_collisions(sources: list[Path], targets: list[Path]) -> None:
    stems_on_disk = {source.resolve() for source in sources}
    taken: set[Path] = set()
    for target in (target.resolve() for target in targets):
        if target in stems_on_disk:
            raise RvcdError(Code.BAD_SETTING, f"{target} is a stem and would be replaced; choose another output.")
        if target in taken:
            raise RvcdError(
                Code.BAD_SETTING, f"Two stems would both become {target}; convert them into different folders."
            )
        taken.add(target)

"""The engine process: keeps models warm and converts one stem at a time.

Orders come in as JSON lines on standard input, reports go out as JSON lines on standard output. The main
thread alone touches MLX. A second thread reads orders, so that a cancellation is heard while a stem is
converted; when the pipe ends, the process ends at once: an engine never outlives its supervisor.

| order (`do`) | fields | reports (`is`) |
| --- | --- | --- |
| configure | content_encoder, pitch, precision, budget_mb, voices | model (per voice), ready or failed |
| load, unload | voice | model, or failed |
| convert | job, path, voice, settings, mode, target, root, backup | progress, then staged or failed |
| cancel | job | failed (cancelled), from the conversion |
"""

import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rvcd import backups, mlx_engine, patching, stems
from rvcd.errors import Code, RvcdError, write_error
from rvcd.fingerprints import Fingerprint
from rvcd.replacing import Staged, check_replaceable
from rvcd.settings import Settings

Order = dict[str, Any]

_PROGRESS_SECONDS = 0.1
_WARM_UP_SECONDS = 1.0
_CONVERTED = 0.95  # of a job, when only writing is left


class CancelledError(Exception):
    """Somebody no longer wants this conversion."""


class Reports:
    """Standard output, kept for reports alone: whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(self, kind: str, **fields: Any) -> None:
        """Send one report."""
        self._file.write(json.dumps({"is": kind, **fields}) + "\n")
        self._file.flush()


class Orders:
    """Standard input, read by a thread of its own."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Order:
        """Wait for the next order."""
        return self._waiting.get()

    def is_cancelled(self, job: int) -> bool:
        """Whether this job is no longer wanted."""
        return job in self._cancelled

    def _read(self) -> None:
        try:
            for line in sys.stdin:
                order = json.loads(line)
                if order["do"] == "cancel":
                    self._cancelled.add(order["job"])
                else:
                    self._waiting.put(order)
        finally:  # also after half a line, the last word of a supervisor that was killed
            os._exit(0)


class WarmVoices:
    """Voices in memory, the least recently used of which leaves when the budget is exceeded."""

    def __init__(self, engine: Any, budget_mb: float, reports: Reports) -> None:
        self.engine = engine
        self._budget_mb, self._reports = budget_mb, reports
        self._voices: OrderedDict[str, Any] = OrderedDict()

    def get(self, path: str) -> Any:
        """The voice at this path, loaded if it is not warm."""
        try:
            key = f"{path}@{Path(path).stat().st_mtime_ns}"
        except OSError as error:
            raise RvcdError(Code.UNKNOWN_VOICE, f"The voice file {path} is gone.") from error
        if key not in self._voices:
            self._drop(path)
            self._reports.send("model", voice=path, state="loading", size_mb=0.0)
            self._voices[key] = self._load(path)
            self._make_room()
            self.tell_warm(path)
        self._voices.move_to_end(key)
        return self._voices[key]

    def tell_warm(self, path: str) -> None:
        """Tell that a voice is warm."""
        self._reports.send("model", voice=path, state="warm", size_mb=_megabytes(path))

    def forget(self, path: str) -> None:
        """Let a voice go."""
        self._drop(path)
        self._reports.send("model", voice=path, state="cold", size_mb=0.0)

    def _load(self, path: str) -> Any:
        try:
            return self.engine.load_voice(path)
        except RvcdError:
            self._reports.send("model", voice=path, state="bad", size_mb=0.0)
            raise

    def _drop(self, path: str) -> None:
        for key in [key for key in self._voices if _path_of(key) == path]:
            del self._voices[key]

    def _make_room(self) -> None:
        while len(self._voices) > 1 and sum(map(_megabytes, map(_path_of, self._voices))) > self._budget_mb:
            key, _ = self._voices.popitem(last=False)
            self._reports.send("model", voice=_path_of(key), state="cold", size_mb=0.0)


def _path_of(key: str) -> str:
    return key.rpartition("@")[0]


def _megabytes(path: str) -> float:
    try:
        return Path(path).stat().st_size / 1e6
    except OSError:
        return 0.0


class Worker:
    """What the orders mean."""

    def __init__(self, reports: Reports, orders: Orders) -> None:
        self._reports, self._orders = reports, orders
        self._voices: WarmVoices | None = None

    def obey(self, order: Order) -> None:
        """Carry out one order and report; an order that fails is reported, never raised."""
        try:
            getattr(self, f"_{order['do']}")(order)
        except CancelledError:
            self._fail(order, Code.CANCELLED, "The conversion was cancelled.")
        except RvcdError as error:
            self._fail(order, error.code, error.sentence)
        except MemoryError:
            self._fail(order, Code.OUT_OF_MEMORY, "There is not enough memory to convert this stem.")
        except Exception as error:
            traceback.print_exc()
            self._fail(order, _code_of(error), f"The engine failed: {error}")

    def _fail(self, order: Order, code: Code, sentence: str) -> None:
        about = {name: order[name] for name in ("do", "job", "voice") if name in order}
        self._reports.send("failed", **about, code=code.value, message=sentence)

    def _configure(self, order: Order) -> None:
        engine = mlx_engine.Engine(order["content_encoder"], order["pitch"], precision=order["precision"])
        self._voices = WarmVoices(engine, order["budget_mb"], self._reports)
        for path in order["voices"]:
            try:
                _warm_up(engine, self._voices.get(path), uses_rmvpe=order["pitch"] is not None)
            except RvcdError as error:  # its own jobs will say so; others need not suffer
                print(f"{path} cannot be kept warm: {error}", file=sys.stderr)  # noqa: T201
        self._reports.send("ready", device=engine.device, mb=_memory_mb())

    def _load(self, order: Order) -> None:
        self._warm().get(order["voice"])
        self._warm().tell_warm(order["voice"])

    def _unload(self, order: Order) -> None:
        self._warm().forget(order["voice"])

    def _warm(self) -> WarmVoices:
        if self._voices is None:
            raise RvcdError(Code.MISSING_MODEL, "The engine has no content encoder; run `rvcd fetch`.")
        return self._voices

    def _convert(self, order: Order) -> None:
        voice = self._warm().get(order["voice"])
        settings = Settings(**order["settings"])
        path, root = Path(order["path"]), Path(order["root"])
        if order["mode"] != "replace":
            self._convert_aside(order, voice, settings)
            return
        original = check_replaceable(path, root)
        before = Fingerprint.of(original)
        backup = backups.back_up(original, root, order["job"], voice=voice.name) if order["backup"] else None
        stem = stems.read_stem(original)
        if Fingerprint.of(original) != before:
            raise RvcdError(Code.CHANGED_UNDERNEATH, f"{original} was written to while it was read.")
        sound = self._sound(order, stem, voice, settings)
        stage_path = backups.stage_folder(root) / f"{order['job']}{original.suffix}"
        staged = patching.stage(original, sound, stage_path, seed=settings.seed)
        if backup is not None:
            backups.note_result(backup, root, staged.digest)
        self._tell_staged(order, staged, original, expected=asdict(before), backup=str(backup.path) if backup else "")

    def _convert_aside(self, order: Order, voice: Any, settings: Settings) -> None:
        """Make a file of its own, under a hidden name that no watcher takes for a bounce."""
        target = Path(order["target"])
        draft = target.with_name(f".rvcd-{order['job']}{target.suffix}")
        stem = stems.read_stem(Path(order["path"]))
        sound = self._sound(order, stem, voice, settings)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            gain_db = stems.write_stem(draft, sound, stem, seed=settings.seed)
            staged = Staged(draft, gain_db, "", len(sound), Fingerprint.of(draft))
        except OSError as error:
            raise write_error(error, target) from error
        self._tell_staged(order, staged, target, expected=None, backup="")

    def _tell_staged(self, order: Order, staged: Staged, target: Path, **about: Any) -> None:
        fields = {**asdict(staged), "path": str(staged.path)}
        self._reports.send("staged", job=order["job"], staged=fields, target=str(target), **about)

    def _sound(self, order: Order, stem: stems.Stem, voice: Any, settings: Settings) -> np.ndarray:
        """Convert, telling how far it is and heeding a cancellation."""
        job, told = order["job"], -1.0

        def on_progress(stage: str, fraction: float) -> None:
            nonlocal told
            if self._orders.is_cancelled(job):
                raise CancelledError
            now = time.monotonic()
            if now - told >= _PROGRESS_SECONDS:
                told = now
                self._reports.send("progress", job=job, stage=stage, fraction=_CONVERTED * fraction, mb=_memory_mb())

        samples = stem.samples.astype(np.float32, copy=False)
        sound: np.ndarray = self._warm().engine.convert(samples, stem.sample_rate, voice, settings, on_progress)
        self._reports.send("progress", job=job, stage="write", fraction=_CONVERTED, mb=_memory_mb())
        return sound


def _warm_up(engine: Any, voice: Any, *, uses_rmvpe: bool) -> None:
    """Convert a second of a tone, so that kernels are compiled before the first stem."""
    at = np.arange(int(44100 * _WARM_UP_SECONDS)) / 44100
    tone = (0.1 * np.sin(2 * np.pi * 220 * at)).astype(np.float32)
    engine.convert(tone, 44100, voice, Settings(f0_method="rmvpe" if uses_rmvpe else "yin"))


def _code_of(error: Exception) -> Code:
    text = str(error).lower()
    if "memory" in text:
        return Code.OUT_OF_MEMORY
    return Code.GPU_ERROR if "metal" in text or "cuda" in text or "command buffer" in text else Code.INTERNAL


def _memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Obey until the orders end."""
    orders = Orders()
    worker = Worker(Reports(), orders)
    while True:
        worker.obey(orders.next())


if __name__ == "__main__":
    main()

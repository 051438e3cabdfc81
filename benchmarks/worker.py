"""One side of `benchmarks/engine.py`, in a process of its own: takes orders as JSON lines, answers with seconds.

The folder given holds what the parent wrote: content/, rmvpe.pt, voice.pth, voice.index and stem.npy (16 kHz, mono).
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPEAKER = 0
INDEX_RATE, PROTECT, LOUDNESS = 0.75, 0.33, 0.75


class Ours:
    """The engine."""

    def __init__(self, folder: Path) -> None:
        from rvcd import paths
        from rvcd.mlx_engine import Engine, import_checkpoint
        from rvcd.settings import Settings

        self.engine = Engine(content_encoder=folder / "content", pitch=folder / "rmvpe.pt", precision="float32")
        converted = import_checkpoint(folder / "voice.pth", index=folder / "voice.index", directory=paths.cache_dir())
        self.voice_path = converted.path
        self.voice = self.engine.load_voice(self.voice_path)
        self.stem = np.load(folder / "stem.npy")
        self.settings = Settings(index_rate=INDEX_RATE, protect=PROTECT, loudness=LOUDNESS)

    def conditions(self) -> dict[str, Any]:
        import mlx.core as mx

        return {
            "device": str(mx.default_device()),
            "threads": len(os.sched_getaffinity(0)),
            **_versions("mlx", "faiss-cpu"),
        }

    def stages(self) -> dict[str, Callable[[], Any]]:
        import mlx.core as mx

        content = self.engine.content_features(self.stem, version="v2")
        features, f0 = np.repeat(content, 2, axis=0), self.engine.f0(self.stem)
        queries = mx.array(content)
        return {
            "content features": lambda: self.engine.content_features(self.stem, version="v2"),
            "pitch (RMVPE)": lambda: self.engine.f0(self.stem),
            "retrieval": lambda: mx.eval(self.voice.index("exact").retrieve(queries)),
            "synthesis": lambda: self.engine.synthesize(
                self.voice, features, f0[: len(features)], SPEAKER, noise_scale=0.66666, source_noise=1.0
            ),
            "whole, the reference's arithmetic": lambda: self.engine.convert_reference(
                self.stem, self.voice, self.settings, noise_scale=0.66666, source_noise=1.0
            ),
            "whole, as rvcd converts": lambda: self.convert(self.stem),
        }

    def convert(self, stem: np.ndarray) -> np.ndarray:
        return self.engine.convert(stem, 16000, self.voice, self.settings)

    def load_voice(self) -> None:
        self.engine.load_voice(self.voice_path)


class Torch:
    """The published torch packages, as the parity suite runs them."""

    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(core_count())
        from tests.parity import reference

        self.pipeline = reference.Pipeline(folder / "content", folder / "rmvpe.pt")
        self.stem = np.load(folder / "stem.npy")
        self.voice, self.index = folder / "voice.pth", folder / "voice.index"
        runtime = self.pipeline.runtime
        runtime.hubert(), runtime.f0("rmvpe"), runtime.voice(self.voice), runtime.index(self.index)

    def conditions(self) -> dict[str, Any]:
        import torch

        return {
            "device": "cpu",
            "threads": torch.get_num_threads(),
            **_versions("torch", "transformers", "rvc-next", "faiss-cpu"),
        }

    def stages(self) -> dict[str, Callable[[], Any]]:
        import torch
        from rvc_next.engine.f0.base import to_coarse
        from rvc_next.engine.features.hubert import extract_features
        from rvc_next.engine.index.retrieval import blend

        runtime = self.pipeline.runtime
        source = torch.from_numpy(self.stem)[None]
        hubert, pitch, index = runtime.hubert(), runtime.f0("rmvpe"), runtime.index(self.index)
        net = runtime.voice(self.voice).net_g

        @torch.no_grad()
        def content() -> Any:
            return extract_features(hubert, source, "v2")

        queries = content()[0].numpy()
        features = torch.from_numpy(np.repeat(queries, 2, axis=0))[None]
        frames = features.shape[1]
        hz = pitch.compute(self.stem, 0)[:frames]
        arguments = (
            features,
            torch.tensor([frames]),
            torch.from_numpy(to_coarse(hz.copy())).long()[None],
            torch.from_numpy(hz.astype(np.float32))[None],
            torch.tensor([SPEAKER]),
        )

        @torch.no_grad()
        def synthesis() -> Any:
            return net.infer(*arguments)

        return {
            "content features": content,
            "pitch (RMVPE)": lambda: pitch.compute(self.stem, 0),
            "retrieval": lambda: blend(queries, index),
            "synthesis": synthesis,
            "whole, the reference's arithmetic": lambda: self.convert(self.stem),
            "whole, as rvcd converts": lambda: self.convert(self.stem),
        }

    def convert(self, stem: np.ndarray) -> np.ndarray:
        return self.pipeline.convert(
            stem,
            self.voice,
            index=self.index,
            index_rate=INDEX_RATE,
            protect=PROTECT,
            rms_mix_rate=1 - LOUDNESS,
            speaker_id=SPEAKER,
        )

    def load_voice(self) -> None:
        from rvc_next.engine.models.loader import load_voice

        load_voice(self.voice, "cpu", False)


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}


def core_count() -> int:
    """Cores this process may use; macOS has no affinity to ask for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """Peak memory of this process; Linux counts in kilobytes, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    side, folder = {"ours": Ours, "torch": Torch}[sys.argv[1]], Path(sys.argv[2])
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a package prints is not an answer
    start = time.perf_counter()
    worker = side(folder)
    stages: dict[str, Callable[[], Any]] = {}

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    answer(seconds=time.perf_counter() - start)
    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "conditions":
                answer(conditions=worker.conditions())
            case "stage":
                stages = stages or worker.stages()
                answer(seconds=seconds_of(stages[order["name"]]))
            case "load voice":
                answer(seconds=seconds_of(worker.load_voice))
            case "convert":
                stem = np.tile(worker.stem, round(order["times"]))
                seconds = seconds_of(lambda stem=stem: worker.convert(stem))
                answer(seconds=seconds, peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()

"""Seconds per stage and end to end, the engine against published torch packages, on this machine in one run.

    python benchmarks/engine.py --torch-python .venv-parity/bin/python [--output benchmarks/results]

Both sides read the same seeded full-size checkpoints and the same synthetic stem, each in a process of its own that
keeps its models loaded. They take turns, so that a busy machine is busy for both; medians are printed. The first turn
of every stage is a warm-up and not counted. Peak memory is that of a fresh process per stem length.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import seeded  # noqa: E402, the repository is not installed

STAGES = (
    "content features",
    "pitch (RMVPE)",
    "retrieval",
    "synthesis",
    "whole, the reference's arithmetic",
    "whole, as rvcd converts",
)
SEED = 1
SAMPLE_RATE, INDEX_VECTORS = 40000, 20_000


class Side:
    """A worker process that is asked and answers."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RVCD_HOME": str(folder / "home")}
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "worker.py"), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.load_seconds: float = self._answer()["seconds"]

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with status {self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def write_models(folder: Path, seconds: float) -> None:
    seeded.content_encoder(folder / "content", seed=SEED)
    seeded.pitch_model(folder / "rmvpe.pt", seed=SEED)
    seeded.voice(folder / "voice.pth", version="v2", sample_rate=SAMPLE_RATE, seed=SEED)
    seeded.retrieval_index(folder / "voice.index", vectors=INDEX_VECTORS, width=768, seed=SEED)
    np.save(folder / "stem.npy", seeded.sung_stem(seconds, 16000, SEED))


def measure_stages(folder: Path, pythons: dict[str, str], repeats: int) -> dict[str, Any]:
    # The first start of ours converts the checkpoints; the second is what a user meets.
    Side("ours", pythons["ours"], folder).stop()
    sides = {name: Side(name, python, folder) for name, python in pythons.items()}
    results: dict[str, Any] = {
        "conditions": {name: side.ask(do="conditions")["conditions"] for name, side in sides.items()},
        "start": {name: side.load_seconds for name, side in sides.items()},
    }
    stages = {}
    for stage in STAGES:
        turns = [{n: s.ask(do="stage", name=stage)["seconds"] for n, s in sides.items()} for _ in range(repeats + 1)]
        stages[stage] = _medians(turns[1:])
        print(f"{stage}: {stages[stage]}", file=sys.stderr)
    loads = [{n: s.ask(do="load voice")["seconds"] for n, s in sides.items()} for _ in range(6)]
    for side in sides.values():
        side.stop()
    return {**results, "stages": stages, "load voice": _medians(loads[1:])}


def measure_memory(folder: Path, python: str, stem_seconds: float, minutes: list[float]) -> list[dict[str, float]]:
    rows = []
    for length in minutes:
        side = Side("ours", python, folder)
        answer = side.ask(do="convert", times=length * 60 / stem_seconds)
        side.stop()
        rows.append({"minutes": length, "seconds": answer["seconds"], "peak_bytes": answer["peak_bytes"]})
        print(f"{length:g} min: {rows[-1]}", file=sys.stderr)
    return rows


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def to_markdown(results: dict[str, Any]) -> str:
    lines = [f"- {name}: {value}" for name, value in results["setting"].items()]
    for name, conditions in results["conditions"].items():
        lines.append(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in conditions.items()))
    lines += ["", "| stage | rvcd, s | torch, s | rvcd / torch |", "| --- | --- | --- | --- |"]
    timed = {**results["stages"], "loading the voice": results["load voice"]}
    for stage, seconds in timed.items():
        ratio = seconds["ours"] / seconds["torch"]
        lines.append(f"| {stage} | {seconds['ours']:.3f} | {seconds['torch']:.3f} | {ratio:.2f} |")
    start = results["start"]
    lines.append(f"| start, all models (cold process) | {start['ours']:.2f} | {start['torch']:.2f} | |")
    if results["memory"]:
        lines += ["", "| stem, min | peak memory, MB | audio itself, MB | seconds |", "| --- | --- | --- | --- |"]
        for row in results["memory"]:
            audio = row["minutes"] * 60 * 16000 * 4 / 1e6
            lines.append(f"| {row['minutes']:g} | {row['peak_bytes'] / 1e6:.0f} | {audio:.0f} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True, help="python of the parity environment")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the stem")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns per stage")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1.0, 10.0], help="stem lengths for peak memory")
    parser.add_argument("--output", type=Path, help="folder for engine.json and engine.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, options.seconds)
        pythons = {"ours": sys.executable, "torch": options.torch_python}
        results = measure_stages(folder, pythons, options.repeats)
        results["memory"] = measure_memory(folder, sys.executable, options.seconds, options.minutes)
    results["setting"] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "stem": f"{options.seconds:g} s, 16 kHz, mono, synthetic singing",
        "voice": f"v2 {SAMPLE_RATE // 1000}k with f0, full size, seed {SEED}",
        "index": f"{INDEX_VECTORS} vectors of 768; nprobe 1 for torch, exact search for rvcd's own conversion",
        "precision": "float32",
        "state": f"warm, median of {options.repeats} turns taken alternately",
    }
    text = to_markdown(results)
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "engine.md").write_text(text + "\n", encoding="utf-8")
        (options.output / "engine.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

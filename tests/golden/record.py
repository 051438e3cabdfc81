"""Record the small reference outputs that `make test` holds the engine against. Needs torch.

python -m tests.golden.record           record them all anew, beside this file
python -m tests.golden.record --check   fail if a fresh recording differs from what is committed
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.parity import reference
from tests.parity.report import package_version
from tests.support import recipes, seeded

FOLDER = Path(__file__).parent
TOLERANCE = 1e-5
"""Relative difference of two recordings that only machines and threads explain."""

Arrays = dict[str, np.ndarray]


def record_content(folder: Path) -> tuple[Arrays, str]:
    arrays = {}
    for recipe in recipes.CONTENT:
        model = reference.Content(seeded.content_encoder(folder / recipe.name, seed=recipes.SEED, tiny=recipe.tiny))
        for version in ("v1", "v2"):
            arrays[f"{recipe.name}-{version}"] = model.features(recipe.stem(), version)[:, :: recipe.thin]
    return arrays, package_version("transformers")


def record_pitch(folder: Path) -> tuple[Arrays, str]:
    arrays = {}
    for recipe in recipes.PITCH:
        model = reference.Pitch(seeded.pitch_model(folder / f"{recipe.name}.pt", seed=recipes.SEED, tiny=recipe.tiny))
        arrays[f"{recipe.name}-salience"] = model.salience(recipe.stem())[:: recipe.thin]
        arrays[f"{recipe.name}-f0"] = model.f0(recipe.stem())
    return arrays, package_version("huggingface_hub_rvc")


def record_voices(folder: Path) -> tuple[Arrays, str]:
    arrays = {}
    for recipe in recipes.VOICES:
        model = reference.Voice(recipe.checkpoint(folder))
        arrays[recipe.name] = model.synthesize(recipe.features(), recipe.contour(), speaker_id=1)
    return arrays, package_version("huggingface_hub_rvc")


def record_pipelines(folder: Path) -> tuple[Arrays, str]:
    content = seeded.content_encoder(folder / "content", seed=recipes.SEED, tiny=True)
    pipeline = reference.Pipeline(content, seeded.pitch_model(folder / "pitch.pt", seed=recipes.SEED, tiny=True))
    arrays = {}
    for recipe in recipes.PIPELINES:
        converted = pipeline.convert(
            recipe.stem(),
            recipe.checkpoint(folder),
            index=recipe.index(folder),
            f0=recipe.contour(),
            windows=recipe.windows,
            speaker_id=1,
            pitch=recipe.semitones,
            index_rate=recipe.index_rate,
            protect=recipe.protect,
            rms_mix_rate=1.0 - recipe.loudness,
        )
        arrays[recipe.name] = converted[:: recipe.thin]
        arrays[f"{recipe.name}-samples"] = np.asarray(len(converted))
    return arrays, package_version("rvc_next")


RECORDERS = {
    "content": record_content,
    "pitch": record_pitch,
    "voices": record_voices,
    "pipelines": record_pipelines,
}


def record(name: str) -> Arrays:
    """Compute one file's arrays, with a note on where they come from."""
    with tempfile.TemporaryDirectory() as folder, reference.noise_off():
        arrays, package = RECORDERS[name](Path(folder))
    note = {"package": package, "torch": torch.__version__, "seed": recipes.SEED, "noise": "off"}
    arrays = {key: np.asarray(a, np.float32 if a.dtype.kind == "f" else a.dtype) for key, a in arrays.items()}
    return {**arrays, "note": np.asarray(json.dumps(note))}


def differences(fresh: Arrays, committed: Arrays) -> list[str]:
    """Say, a line each, where two recordings differ by more than the tolerance."""
    if fresh.keys() != committed.keys():
        return [f"names differ: {sorted(fresh.keys() ^ committed.keys())}"]
    lines = []
    for key, new in fresh.items():
        old = committed[key]
        if new.dtype.kind == "U":
            continue
        if new.shape != old.shape:
            lines.append(f"{key}: shape {new.shape}, committed {old.shape}")
            continue
        error = np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), 1e-12)
        if not error <= TOLERANCE:
            lines.append(f"{key}: relative difference {error:.1e}")
    return lines


def committed(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    check = parser.parse_args().check
    stale = 0
    for name in RECORDERS:
        fresh = record(name)
        if check:
            lines = differences(fresh, committed(name))
            stale += bool(lines)
            print(f"{name}.npz:", "; ".join(lines) if lines else "as committed")
        else:
            np.savez_compressed(FOLDER / f"{name}.npz", **fresh)
            print(f"{name}.npz: {(FOLDER / f'{name}.npz').stat().st_size} bytes")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())

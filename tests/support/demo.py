"""`make demo`: import a full-size voice and convert a stem with it, from the command line, in a folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support import seeded  # noqa: E402  (the repository is no installed package)

OUTPUT = ROOT / "demo-output"


def rvcd(*arguments: str | Path) -> None:
    """Run the command line as a user would, in the demo's own home."""
    print("\n$ rvcd", *(os.path.relpath(a, ROOT) if isinstance(a, Path) else a for a in arguments), flush=True)
    environment = {**os.environ, "RVCD_HOME": str(OUTPUT / "home")}
    subprocess.run([sys.executable, "-m", "rvcd", *map(str, arguments)], check=True, cwd=ROOT, env=environment)


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    models, stem = OUTPUT / "checkpoints", OUTPUT / "lead vocal.wav"
    models.mkdir(parents=True)
    print("This demo's models are of the real architecture and size, but their weights are random: no voice is heard.")
    seeded.voice(models / "demo.pth", seed=3)
    seeded.retrieval_index(models / "demo.index", vectors=2000, width=768, seed=4)
    seeded.content_encoder(models / "content", seed=1)
    seeded.pitch_model(models / "rmvpe.pt", seed=2)
    mono = seeded.sung_stem(6.0, 44100, seed=5)
    soundfile.write(stem, np.stack([mono, mono], axis=1), 44100, subtype="PCM_24")

    rvcd("import", models / "content", models / "rmvpe.pt", models / "demo.pth", models / "demo.index")
    rvcd("voices")
    rvcd("convert", stem, "--voice", "demo", "--semitones", "2")
    source, result = soundfile.info(stem), soundfile.info(OUTPUT / "lead vocal.demo.wav")
    print(f"\n  {'':10}{'frames':>10}{'rate':>8}{'channels':>10}  subtype   file")
    for label, info in (("stem", source), ("converted", result)):
        print(f"  {label:10}{info.frames:>10}{info.samplerate:>8}{info.channels:>10}  {info.subtype:8}  {info.name}")
    if any(getattr(source, k) != getattr(result, k) for k in ("frames", "samplerate", "channels", "subtype")):
        sys.exit("the converted file differs from the stem in length, rate, channels or subtype")


if __name__ == "__main__":
    main()

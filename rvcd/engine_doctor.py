"""The checks that load numpy and MLX: models, backend, arithmetic. A program; `rvcd.doctor` runs it as a child."""

import json
import sys
from collections.abc import Iterator

from rvcd.doctor import Finding, Verdict
from rvcd.errors import RvcdError
from rvcd.mlx_engine import blas
from rvcd.mlx_engine.configs import Kind
from rvcd.voices import find_model, list_voices

_BASE_MODELS: tuple[Kind, ...] = ("content-encoder", "pitch")


def main() -> None:
    """Print the findings as one JSON document."""
    findings = [*check_models(), *check_voices(), *check_arithmetic()]
    json.dump([finding.to_json() for finding in findings], sys.stdout)


def check_models() -> Iterator[Finding]:
    """Whether both base models are installed and whole."""
    for kind in _BASE_MODELS:
        try:
            yield Finding("models", Verdict.OK, f"The {kind} model is {find_model(kind).name}.")
        except RvcdError as error:
            yield Finding("models", Verdict.FAIL, error.sentence, "Run `rvcd fetch`.")


def check_voices() -> Iterator[Finding]:
    """Whether there are voices, and all of them whole."""
    voices = list_voices()
    for voice in voices:
        if voice.problem:
            remedy = f"Import {voice.name} again, or delete {voice.path}."
            yield Finding("voices", Verdict.WARN, voice.problem.sentence, remedy)
    usable = [voice.name for voice in voices if not voice.problem]
    if usable:
        yield Finding("voices", Verdict.OK, f"Voices that can be used: {len(usable)}.")
    else:
        yield Finding("voices", Verdict.WARN, "There is no voice yet.", "Bring one with `rvcd import FILE.pth`.")


def check_arithmetic() -> Iterator[Finding]:
    """Name the device that computes, and compare its results with plain operations on the CPU."""
    fast_products = blas.preload()
    from rvcd.mlx_engine.self_test import compare

    comparison = compare()
    yield _backend(comparison.device, comparison.uses_gpu, fast_products)
    against = "the CPU" if comparison.uses_gpu else "plain operations"
    if comparison.failed:
        told = ", ".join(f"{name} by {comparison.deviations[name]:.1e}" for name in comparison.failed)
        remedy = "Update macOS or the GPU's driver and mlx; report it with the output of `rvcd doctor --json`."
        yield Finding("arithmetic", Verdict.FAIL, f"The engine strays from {against}: {told}.", remedy)
    else:
        worst = max(comparison.deviations.values())
        yield Finding("arithmetic", Verdict.OK, f"The engine agrees with {against} within {worst:.1e}.")


def _backend(device: str, uses_gpu: bool, fast_products: bool) -> Finding:
    if not uses_gpu and sys.platform == "darwin":
        remedy = (
            "rvcd needs Apple silicon and an arm64 Python (`python -c 'import platform; print(platform.machine())'`)."
        )
        return Finding("backend", Verdict.WARN, f"MLX computes on the CPU ({device}), not on the GPU.", remedy)
    if not uses_gpu and not fast_products:
        sentence = (
            f"MLX computes on the CPU ({device}) with its slow built-in products: faiss-cpu's OpenBLAS is missing."
        )
        return Finding("backend", Verdict.WARN, sentence, "Install faiss-cpu from its wheel.")
    return Finding("backend", Verdict.OK, f"MLX computes on: {device}{'' if uses_gpu else ', with OpenBLAS'}.")


if __name__ == "__main__":
    main()

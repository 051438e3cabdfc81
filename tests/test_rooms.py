"""Who may import whom. The table below is the design; the code is held against it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[1]

ANYTHING = {"rvcd"}
ROOMS: dict[str, set[str]] = {
    "rvcd": set(),
    "rvcd.__main__": {"rvcd.cli"},
    "rvcd.errors": set(),
    "rvcd.settings": {"rvcd.errors"},
    "rvcd.paths": {"rvcd.errors"},
    "rvcd.jobs": {"rvcd.errors", "rvcd.settings"},
    "rvcd.journal": {"rvcd.errors", "rvcd.jobs", "rvcd.journal_file"},
    "rvcd.journal_file": {"rvcd.errors"},
    "rvcd.toml_text": set(),
    "rvcd.config_checks": {"rvcd.errors", "rvcd.settings"},
    "rvcd.config": {
        *("rvcd.errors", "rvcd.settings", "rvcd.paths", "rvcd.jobs"),
        *("rvcd.config_checks", "rvcd.toml_text"),
    },
    "rvcd.config_text": {"rvcd.settings", "rvcd.config", "rvcd.toml_text"},
    "rvcd.effective": {"rvcd.errors", "rvcd.settings", "rvcd.jobs", "rvcd.config", "rvcd.config_checks"},
    "rvcd.stems": {"rvcd.errors"},
    "rvcd.fingerprints": set(),
    "rvcd.containers": {"rvcd.errors"},
    "rvcd.disk": {"rvcd.errors", "rvcd.fingerprints"},
    "rvcd.replacing": {"rvcd.disk", "rvcd.errors", "rvcd.fingerprints"},
    "rvcd.backups": {"rvcd.disk", "rvcd.errors", "rvcd.fingerprints", "rvcd.replacing"},
    "rvcd.flac": {"rvcd.containers"},
    "rvcd.patching": {
        *("rvcd.containers", "rvcd.disk", "rvcd.errors", "rvcd.fingerprints", "rvcd.flac", "rvcd.replacing"),
        "rvcd.stems",
    },
    "rvcd.voices": {"rvcd.errors", "rvcd.paths", "rvcd.mlx_engine.weights", "rvcd.mlx_engine.configs"},
    "rvcd.fetch": {"rvcd.__version__", "rvcd.errors", "rvcd.paths", "rvcd.mlx_engine"},
    "rvcd.mlx_engine": {"rvcd.errors", "rvcd.settings", "rvcd.paths"},
    "rvcd.osc": {"rvcd.errors", "rvcd.settings", "rvcd.jobs"},
    "rvcd.logs": {"rvcd.paths"},
    "rvcd.service": {"rvcd.errors", "rvcd.paths"},
    "rvcd.doctor": {"rvcd.__version__", "rvcd.errors", "rvcd.paths"},
    "rvcd.engine_doctor": {
        *("rvcd.doctor", "rvcd.errors", "rvcd.voices"),
        *("rvcd.mlx_engine.blas", "rvcd.mlx_engine.configs", "rvcd.mlx_engine.self_test"),
    },
    "rvcd.watch": {"rvcd.errors", "rvcd.fingerprints"},
    "rvcd.worker": {
        *("rvcd.backups", "rvcd.errors", "rvcd.fingerprints", "rvcd.mlx_engine", "rvcd.patching", "rvcd.replacing"),
        *("rvcd.settings", "rvcd.stems"),
    },
    "rvcd.engine_link": set(),
    "rvcd.instance": {"rvcd.errors", "rvcd.paths"},
    "rvcd.completeness": {"rvcd.containers", "rvcd.errors"},
    "rvcd.places": {"rvcd.config", "rvcd.errors", "rvcd.jobs"},
    "rvcd.conversions": {
        *("rvcd.config", "rvcd.disk", "rvcd.effective", "rvcd.engine_link", "rvcd.errors", "rvcd.fingerprints"),
        *("rvcd.jobs", "rvcd.journal", "rvcd.osc.control", "rvcd.places", "rvcd.replacing", "rvcd.settings"),
        *("rvcd.voices", "rvcd.watch.ledger", "rvcd.completeness"),
    },
    "rvcd.bounces": {"rvcd.config", "rvcd.completeness", "rvcd.errors", "rvcd.jobs", "rvcd.watch"},
    "rvcd.spool": {"rvcd.errors", "rvcd.jobs", "rvcd.paths"},
    "rvcd.daemon": ANYTHING,
    "rvcd.cli": ANYTHING,
    "rvcd.commands": ANYTHING,
}
"""A room (a module, or a package with all it holds) and what of rvcd it may import."""

AT_ONCE = {"rvcd.errors", "rvcd.settings", "rvcd.paths", "rvcd.commands.output", "rvcd.__version__"}
"""What the command line may import before it knows the command; the command itself waits until it is chosen."""

HOMES: dict[str, set[str]] = {
    "mlx": {"rvcd.mlx_engine"},
    "faiss": {"rvcd.mlx_engine"},
    "soxr": {"rvcd.mlx_engine"},
    "scipy": {"rvcd.mlx_engine"},
    "soundfile": {"rvcd.stems"},
    "huggingface_hub": {"rvcd.fetch"},
    "platformdirs": {"rvcd.paths"},
    "tomllib": {"rvcd.config"},
    "pythonosc": set(),
    "watchdog": {"rvcd.watch"},
    "torch": set(),
    "librosa": set(),
    "transformers": set(),
}
"""The only rooms that know a package of others."""

READERS = {
    "archive",
    "checkpoint",
    "configs",
    "encoder_checkpoint",
    "faiss_file",
    "inert_pickle",
    "pitch_checkpoint",
    "safetensors_file",
    "state_dict",
    "torch_file",
    "voice_checkpoint",
    "weights",
}
"""Modules of the engine that read files and never touch MLX."""

WITHOUT_MLX = [
    *("rvcd.errors", "rvcd.settings", "rvcd.paths", "rvcd.stems", "rvcd.voices", "rvcd.fetch"),
    *("rvcd.cli", "rvcd.commands.voices", "rvcd.commands.fetching"),
    "rvcd.watch",
    *(f"rvcd.mlx_engine.{name}" for name in sorted(READERS)),
]
"""Importing any of these must not load MLX, by whatever way round."""


@dataclass(frozen=True)
class Import:
    """One imported name, as `package.module.name`, and when it is imported."""

    target: str
    when: Literal["at once", "in a function", "for types"]


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    package = module if is_package else module.rpartition(".")[0]

    def walk(node: ast.AST, when: Literal["at once", "in a function", "for types"]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (Import(f"{source}.{alias.name}", when) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, "for types")
            for child in node.orelse:
                yield from walk(child, when)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, "in a function" if inside and when == "at once" else when)

    yield from walk(tree, "at once")


def lies_in(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str | None:
    room = ".".join(module.split(".")[:2])
    return room if room in ROOMS else None


def complaints(root: Path) -> Iterator[str]:
    """Everything under `root`/rvcd that breaks the table, one sentence each."""
    for path in sorted((root / "rvcd").rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        room = room_of(module)
        if room is None:
            yield f"{module} has no room in the table"
            continue
        for found in imports(ast.parse(path.read_text()), module, is_package):
            yield from (f"{module} {complaint}" for complaint in complaints_about(found, module, room))


def complaints_about(found: Import, module: str, room: str) -> Iterator[str]:
    target = found.target
    top = target.split(".")[0]
    if top == "rvcd" and not lies_in(target, ROOMS[room] | {room}):
        yield f"may not import {target}"
    if top in HOMES and not lies_in(room, HOMES[top]):
        yield f"may not import {top}"
    if top == "mlx" and module.removeprefix("rvcd.mlx_engine.") in READERS:
        yield "reads files and may not import mlx"
    if room == "rvcd.cli" and top == "rvcd" and found.when == "at once" and not lies_in(target, AT_ONCE):
        yield f"must import {target} inside the function that needs it"


def private_imports(root: Path) -> Iterator[str]:
    """Names that the engine keeps to itself and that files outside of it import."""
    for path in sorted(path for folder in ("rvcd", "tests", "benchmarks") for path in (root / folder).rglob("*.py")):
        if path.is_relative_to(root / "rvcd" / "mlx_engine"):
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for found in imports(ast.parse(path.read_text()), module, path.name == "__init__.py"):
            inner = found.target.removeprefix("rvcd.mlx_engine.")
            if inner != found.target and any(part.startswith("_") for part in inner.split(".")):
                yield f"{module} imports {found.target}"


def test_every_module_keeps_to_its_room() -> None:
    assert list(complaints(ROOT)) == []


def test_what_the_engine_keeps_private_stays_there() -> None:
    assert list(private_imports(ROOT)) == []


@pytest.mark.parametrize("module", WITHOUT_MLX)
def test_reading_and_asking_never_load_mlx(module: str) -> None:
    program = f"import sys, {module}; sys.exit('mlx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr or f"{module} loads mlx"


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("rvcd/errors.py", "import rvcd.paths", "may not import rvcd.paths"),
        ("rvcd/settings.py", "from rvcd import paths", "may not import rvcd.paths"),
        ("rvcd/paths.py", "from . import settings", "may not import rvcd.settings"),
        ("rvcd/voices.py", "from rvcd.mlx_engine.engine import Engine", "may not import rvcd.mlx_engine.engine.Engine"),
        ("rvcd/fetch.py", "def f():\n    import mlx.core as mx", "may not import mlx"),
        ("rvcd/cli.py", "from rvcd.fetch import ASSETS", "must import rvcd.fetch.ASSETS inside"),
        ("rvcd/cli.py", "from rvcd.commands import convert", "must import rvcd.commands.convert inside"),
        ("rvcd/mlx_engine/engine.py", "from rvcd.stems import read", "may not import rvcd.stems.read"),
        ("rvcd/mlx_engine/engine.py", "from ..voices import find", "may not import rvcd.voices.find"),
        ("rvcd/mlx_engine/weights.py", "def f():\n    import mlx.core", "may not import mlx"),
        ("rvcd/mlx_engine/hubert.py", "import torch.nn", "may not import torch"),
        ("rvcd/commands/convert.py", "import soundfile", "may not import soundfile"),
        ("rvcd/newcomer.py", "", "no room"),
    ],
)
def test_a_step_out_of_a_room_is_seen(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    write(tmp_path / path, source)
    (found,) = complaints(tmp_path)
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rvcd/cli.py", "def f():\n    from rvcd.fetch import ASSETS"),
        ("rvcd/cli.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rvcd.fetch import ASSETS"),
        ("rvcd/mlx_engine/engine.py", "import mlx.core as mx\nfrom .weights import save"),
        ("rvcd/mlx_engine/__init__.py", "from .weights import save"),
    ],
)
def test_a_step_within_a_room_is_not(tmp_path: Path, path: str, source: str) -> None:
    write(tmp_path / path, source)
    assert list(complaints(tmp_path)) == []


def test_a_private_name_is_seen_from_outside_only(tmp_path: Path) -> None:
    write(tmp_path / "rvcd/fetch.py", "from rvcd.mlx_engine.weights import _raw_header")
    write(tmp_path / "rvcd/mlx_engine/engine.py", "from rvcd.mlx_engine.weights import _raw_header")
    assert list(private_imports(tmp_path)) == ["rvcd.fetch imports rvcd.mlx_engine.weights._raw_header"]


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)

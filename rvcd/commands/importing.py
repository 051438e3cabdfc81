"""`rvcd import`: voices and base models from what users hand over, into the library."""

import argparse
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rvcd import mlx_engine, paths
from rvcd.commands.output import DONE, FAILED, error_fields, print_error, print_json
from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine.archive import FoundModel, bare_name, find_models, pair_voices

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".index")


@dataclass(frozen=True)
class Result:
    """What became of one model."""

    source: str
    path: str | None = None
    kind: str | None = None
    name: str | None = None
    index: str | None = None
    fresh: bool | None = None
    """False when the same sources were imported before."""
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class _Job:
    model: FoundModel
    index: FoundModel | None = None
    name: str | None = None


def run(arguments: argparse.Namespace) -> int:
    """Import everything that can be; what fails does not stop the rest."""
    with tempfile.TemporaryDirectory(prefix="rvcd-") as folder:
        importer = _Importer(arguments, Path(folder))
        importer.look()
        importer.work()
    if arguments.json:
        print_json([asdict(result) for result in importer.results])
    return FAILED if any(result.error for result in importer.results) else DONE


class _Importer:
    """Looks at every source first: a voice may come before or after its index."""

    def __init__(self, arguments: argparse.Namespace, unpacked: Path) -> None:
        self._sources: list[Path] = arguments.sources
        self._name: str | None = arguments.name
        self._quiet: bool = arguments.json
        self._unpacked = unpacked
        self._found: list[FoundModel] = []
        self._labels: dict[Path, str] = {}
        self.results: list[Result] = []

    def look(self) -> None:
        """Find the models in every source."""
        for number, source in enumerate(self._sources):
            folder = self._unpacked / str(number)
            try:
                found = find_models(source, unpack_into=folder)
                self._keep(source, found, folder)
            except RvcdError as error:
                self._fail(str(source), error)

    def work(self) -> None:
        """Import what was found. Raises `RvcdError`: `bad_setting` for one name and several voices."""
        pairs = pair_voices(self._found)
        if self._name is not None and len(pairs) > 1:
            raise RvcdError(
                Code.BAD_SETTING, f"--name {self._name} names one voice, but {len(pairs)} are here; import them singly."
            )
        others = [_Job(model) for model in self._found if model.kind in ("content-encoder", "pitch")]
        for job in [*self._named(pairs), *others]:
            try:
                self._import(job)
            except RvcdError as error:
                self._fail(self._labels[job.model.path], error)
        for index, reason in _idle_indexes(self._found, pairs):
            self._fail(self._labels[index.path], reason)

    def _keep(self, source: Path, found: list[FoundModel], unpacked: Path) -> None:
        """Note what a source holds; what lies beside models, such as a readme, is passed over."""
        root = unpacked if unpacked.exists() else source
        for model in found:
            self._labels[model.path] = str(source / model.path.relative_to(root))
        self._found += [model for model in found if model.problem is None]
        bad = [m for m in found if m.path == source or m.path.suffix.lower() in _CHECKPOINT_SUFFIXES]
        problems = [(model, model.problem) for model in bad if model.problem is not None]
        for model, problem in problems:
            self._fail(self._labels[model.path], problem)
        if not problems and all(model.problem for model in found):
            raise RvcdError(Code.NOT_A_CHECKPOINT, "There is no model in it.")

    def _named(self, pairs: list[tuple[FoundModel, FoundModel | None]]) -> list[_Job]:
        """Give voices that would get the same name, as epochs of one training do, their whole file names."""
        uses = Counter(bare_name(voice.path) for voice, _ in pairs)
        taken: set[str] = set()
        jobs = []
        for voice, index in pairs:
            name = self._name or (voice.path.stem if uses[bare_name(voice.path)] > 1 else None)
            if name in taken:
                clash = RvcdError(Code.BAD_SETTING, f"Two voices are called {name}; import this one with --name.")
                self._fail(self._labels[voice.path], clash)
                continue
            taken |= {name} if name else set()
            jobs.append(_Job(voice, index, name))
        return jobs

    def _import(self, job: _Job) -> None:
        is_voice = job.model.kind == "voice"
        imported = mlx_engine.import_checkpoint(
            job.model.path,
            index=job.index.path if job.index else None,
            directory=paths.voices_dir() if is_voice else paths.models_dir(),
            name=job.name,
        )
        if not is_voice:
            imported.path.touch()  # of several base models, the one imported last is used
        source = self._labels[job.model.path]
        index = self._labels[job.index.path] if job.index else None
        self.results.append(
            Result(source, str(imported.path), imported.kind, imported.name, index, fresh=imported.fresh)
        )
        if not self._quiet:
            done = "imported" if imported.fresh else "was imported before:"
            and_index = f" with {index}" if index else ""
            print(f"{source}{and_index}: {done} {imported.kind} {imported.name}", flush=True)  # noqa: T201

    def _fail(self, source: str, error: RvcdError) -> None:
        print_error(error, about=source)
        self.results.append(Result(source, error=error_fields(error)))


def _idle_indexes(
    found: list[FoundModel], pairs: list[tuple[FoundModel, FoundModel | None]]
) -> list[tuple[FoundModel, RvcdError]]:
    """Indexes that should have found a voice, and why they did not; none if every voice has its index."""
    lonely = [voice for voice, index in pairs if index is None]
    if pairs and not lonely:
        return []
    used = {index.path for _, index in pairs if index}
    idle = [model for model in found if model.kind == "index" and model.path not in used]
    return [(index, _why_idle(index, lonely)) for index in idle]


def _why_idle(index: FoundModel, lonely: list[FoundModel]) -> RvcdError:
    if not index.vectors:
        return RvcdError(Code.EMPTY_INDEX, "This index is trained but holds no vectors; import the added_ one.")
    if not lonely:
        return RvcdError(Code.BAD_INDEX, "This is a retrieval index; import it together with its voice (.pth).")
    if all(voice.width not in (0, index.width) for voice in lonely):
        widths = " or ".join(sorted({str(voice.width) for voice in lonely}))
        return RvcdError(
            Code.INDEX_WIDTH,
            f"It holds vectors of width {index.width}, the voice reads {widths}; it belongs to another.",
        )
    return RvcdError(
        Code.BAD_INDEX, "It may belong to several voices; import each voice with its index in a call of its own."
    )

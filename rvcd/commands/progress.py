"""Progress on stderr: a bar with stage and time left on a terminal, one line for each stage elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

OnProgress = Callable[[str, float], None]
"""Called with the stage and the fraction of the whole job that is done."""


@contextmanager
def showing_progress(name: str) -> Iterator[OnProgress]:
    """Show the progress of one job until the block ends."""
    if sys.stderr.isatty():
        with _bar(name) as on_progress:
            yield on_progress
    else:
        yield _lines(name)


@contextmanager
def _bar(name: str) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=1.0, stage="loading")

        def on_progress(stage: str, fraction: float) -> None:
            progress.update(task, completed=fraction, stage=stage)

        yield on_progress


def _lines(name: str) -> OnProgress:
    last_stage = ""

    def on_progress(stage: str, fraction: float) -> None:  # noqa: ARG001
        nonlocal last_stage
        if stage != last_stage:
            last_stage = stage
            print(f"{name}: {stage}", file=sys.stderr, flush=True)  # noqa: T201

    return on_progress

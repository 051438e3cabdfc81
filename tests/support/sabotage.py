"""The daemon, sabotaged: `python -m tests.support.sabotage WHAT [ARGUMENT...] --port N`.

gated: the engine says `converting` and waits for `go`, both files in the home, before it converts each stem.
broken: the engine dies as soon as it is started, and leaves a line in `starts`.
kill METHOD before|after NAME: the supervisor kills itself around a step of the job of the stem NAME.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rvcd import paths
from rvcd.conversions import Conversions
from rvcd.engine_link import EngineLink
from rvcd.journal import Journal

_ME = (sys.executable, "-m", "tests.support.sabotage")


def use_engine(*command: str) -> None:
    EngineLink.__init__.__defaults__ = (command,)  # type: ignore[misc]


def run_gated_engine() -> None:
    from rvcd import worker
    from rvcd.mlx_engine.engine import Engine

    original = Engine.convert

    def convert(self: Engine, samples: Any, rate: int, voice: Any, settings: Any, on_progress: Any = None) -> Any:
        if on_progress is None:
            return original(self, samples, rate, voice, settings)
        (paths.home() / "converting").touch()
        while not (paths.home() / "go").exists():
            on_progress("analysis", 0.1)
            time.sleep(0.01)
        return original(self, samples, rate, voice, settings, on_progress)

    Engine.convert = convert  # type: ignore[method-assign, assignment]
    worker.main()


def kill_around(method: str, when: str, name: str) -> None:
    """Kill this process before or after a method is called for the job of a stem."""
    owner: Any = Journal if hasattr(Journal, method) else Conversions
    original = getattr(owner, method)

    def stem_of(self: Any, subject: Any, *args: Any) -> Path:
        if method == "_put_in_place":
            return Path(args[0])
        return Path(self.job(subject).request.path if isinstance(subject, int) else subject.path)

    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        is_meant = stem_of(self, *args).name == name
        if is_meant and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args, **options)
        if is_meant:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, wrapped)


def main(what: str, *arguments: str) -> None:
    options = list(arguments)
    if what == "gated-engine":
        run_gated_engine()
        return
    if what == "gated":
        use_engine(*_ME, "gated-engine")
    elif what == "broken":
        starts = Path(paths.home() / "starts")
        use_engine(sys.executable, "-c", f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(7)")
    elif what == "kill":
        kill_around(*options[:3])
        options = options[3:]
    from rvcd.cli import main as rvcd

    sys.exit(rvcd(["run", *options]))


if __name__ == "__main__":
    main(*sys.argv[1:])

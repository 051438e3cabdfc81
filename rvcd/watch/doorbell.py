"""The doorbell: operating-system events that say where to look. The scanner finds what there is to see.

Events are lost without notice, stop when the root is renamed, and on macOS come late. A missed ring costs
time, never a stem.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog import events
from watchdog.observers import Observer

from rvcd.watch.names import is_hidden, is_stem

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)

# Opening and reading are left out: our own looks would ring.
_RINGING = [
    *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileMovedEvent, events.FileDeletedEvent),
    *(events.FileClosedEvent, events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent),
]


class Doorbell(events.FileSystemEventHandler):
    """Calls back, from a thread of its own, with each stem or folder below `root` that was touched.

    `on_closed` is called with a stem whose writer closed it; only Linux tells that.
    """

    def __init__(self, root: Path, on_touched: Callable[[Path], None], on_closed: Callable[[Path], None]) -> None:
        self._root = root
        self._on_touched = on_touched
        self._on_closed = on_closed
        self._observer: BaseObserver | None = None

    def arm(self) -> bool:
        """Start listening, unless the system has no more watches to give; say whether it worked."""
        self.disarm()
        # Folders made one inside the other at once make watchdog add a watch twice, and say so.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, "watchdog")
        try:
            self._observer = Observer()
            self._observer.schedule(self, os.fspath(self._root), recursive=True, event_filter=_RINGING)
            self._observer.start()
        except (OSError, RuntimeError) as error:
            log.warning("%s is watched by polling alone: %s", self._root, error)
            self.disarm()
            return False
        return True

    def is_alive(self) -> bool:
        """Whether rings can still be expected."""
        if self._observer is None or not self._observer.is_alive():
            return False
        emitters = self._observer.emitters
        # On Linux one more thread reads the events, and nothing public tells of its end.
        reader = getattr(self._observer, "_inotify_fd", self._observer)
        return bool(emitters) and all(thread.is_alive() for thread in (reader, *emitters))

    def disarm(self) -> None:
        """Stop listening; return when the threads have ended."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join()

    def dispatch(self, event: events.FileSystemEvent) -> None:
        """Pass on what concerns stems."""
        for path in self._paths(event):
            if isinstance(event, events.FileClosedEvent):
                self._on_closed(path)
            else:
                self._on_touched(path)

    def _paths(self, event: events.FileSystemEvent) -> Iterator[Path]:
        for raw in (event.src_path, event.dest_path):
            path = Path(os.fsdecode(raw))
            if raw and (event.is_directory or is_stem(path.name)) and self._is_visible(path):
                yield path

    def _is_visible(self, path: Path) -> bool:
        return path.is_relative_to(self._root) and not any(map(is_hidden, path.relative_to(self._root).parts))

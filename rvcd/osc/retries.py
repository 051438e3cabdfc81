"""Safe retries: a request that comes again gets the answers of the first time."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from rvcd.osc.codec import Message

RETRY_SECONDS = 600.0
MAX_REMEMBERED = 8192

Key = tuple[str, ...]


@dataclass(frozen=True)
class _Request:
    came: float
    answers: list[Message] = field(default_factory=list)


class Retries:
    """Answers to the requests of the last ten minutes, by who asked what under which name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests: OrderedDict[Key, _Request] = OrderedDict()

    def recall(self, key: Key) -> list[Message] | None:
        """Return the answers so far, or None for a new request."""
        self._forget_old()
        request = self._requests.get(key)
        return None if request is None else list(request.answers)

    def begin(self, key: Key) -> list[Message]:
        """Remember a new request; its answers are to be appended to the list."""
        request = self._requests[key] = _Request(self._clock())
        return request.answers

    def _forget_old(self) -> None:
        horizon = self._clock() - RETRY_SECONDS
        while self._requests:
            oldest = next(iter(self._requests.values()))
            if oldest.came > horizon and len(self._requests) < MAX_REMEMBERED:
                return
            self._requests.popitem(last=False)

"""One request on its way: what was asked, by whom, and the ways to answer it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.osc.clients import Clients, Source
from rvcd.osc.codec import Argument, Message
from rvcd.osc.messages import outgoing
from rvcd.osc.methods import Method

MAX_WORK = 64
"""Accepted commands of one client that are not done."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]

log = logging.getLogger(__name__)


class Call:
    """A message that a method answers."""

    def __init__(self, clients: Clients, spawn: Spawn, source: Source, method: Method, message: Message) -> None:
        self.source = source
        self.client = source.client
        self.address = message.address
        self.req = req_of(method, message.args)
        self.values: tuple[Any, ...] = ()
        self.rest: tuple[Argument, ...] = message.args[len(method.types) :]
        self.answers: list[Message] = []
        """What was answered so far; shared with the memory of retries where there is one."""
        self._clients = clients
        self._spawn = spawn

    def reply(self, address: str, *values: object) -> None:
        """Send an answer."""
        answer = outgoing(address, *values)
        self.answers.append(answer)
        self._clients.send(self.client, answer)

    def repeat(self, answers: Iterable[Message]) -> None:
        """Send the answers of the first time again."""
        for answer in answers:
            self._clients.send(self.client, answer)

    def done(self, _: None = None) -> None:
        """Say that it is done."""
        self.reply("/rvcd/done", self.address, self.req)

    def fail(self, error: BaseException) -> None:
        """Say why it is not; what nobody can act on goes into the log."""
        if not isinstance(error, RvcdError):
            log.error("%s broke", self.address, exc_info=error)
            error = RvcdError(Code.INTERNAL, f"{self.address} broke ({type(error).__name__}); see the log.")
        self.reply("/rvcd/fail", self.address, self.req, error.code, error.sentence)

    def later(self, work: Coroutine[Any, Any, None], job: int = 0) -> None:
        """Accept now, and say done or fail when the work ends."""
        if len(self.client.work) >= MAX_WORK:
            work.close()
            raise RvcdError(Code.BUSY, f"{MAX_WORK} of your requests are not done yet; wait for one of them.")
        self.reply("/rvcd/accepted", self.req, job, 0)
        self._keep(self._finish(work))

    def after(self, work: "tuple[asyncio.Task[None], ...]", answer: Callable[[], None]) -> None:
        """Answer when earlier work is over."""
        if not work:
            answer()
            return

        async def wait() -> None:
            await asyncio.wait(work)
            answer()

        self._keep(wait())

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.fail(error)
        else:
            self.done()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._spawn(work)
        self.client.work.add(task)
        task.add_done_callback(self.client.work.discard)


def req_of(method: Method, args: tuple[Argument, ...]) -> str:
    """Return the client's name for a request, "" where it gave none."""
    first = args[0] if method.has_req and args else ""
    return first if isinstance(first, str) else ""

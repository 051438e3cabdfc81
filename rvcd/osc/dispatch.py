"""Packets to calls: who asks, whether it may, which method it is, and in which order answers go."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from rvcd.errors import Code, RvcdError
from rvcd.osc.arguments import values_of
from rvcd.osc.calls import Call
from rvcd.osc.clients import Clients, Endpoint, Source
from rvcd.osc.codec import Malformed, Message, decode
from rvcd.osc.messages import SENT, outgoing
from rvcd.osc.methods import METHODS, Method
from rvcd.osc.patterns import is_pattern, matches
from rvcd.osc.requests import Requests
from rvcd.osc.retries import Retries

MAX_WAITING = 256
"""Requests of one source that wait for an earlier one."""

Handler = Callable[[Call], Awaitable[None] | None]

log = logging.getLogger(__name__)


class Dispatcher:
    """Takes packets; every message that can be answered is answered exactly once."""

    def __init__(self, clients: Clients, requests: Requests, clock: Callable[[], float]) -> None:
        self._clients = clients
        self._requests = requests
        self._clock = clock
        self._retries = Retries(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._methods = {method.address: (method, handler_of(requests, method)) for method in METHODS}

    def take(self, endpoint: Endpoint, packet: bytes) -> None:
        """Handle a packet that came from somewhere. Never raises."""
        try:
            source = self._clients.source(endpoint)
            for message in decode(packet):
                if not source.may_ask(self._clock()):
                    self._tell_off(source)
                    return
                self._take(source, message)
        except Exception:
            log.exception("a packet from %s broke", endpoint)

    async def close(self) -> None:
        """Drop what is not answered."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, source: Source, message: Message | Malformed) -> None:
        """Handle a message now, or behind an earlier one of the same source."""
        if message.address in SENT:
            return  # an answer to an answer would go round for ever
        source.client.touch(self._clock())
        before = source.lane
        if before is None or before.done():
            rest = self._handle(source, message)
            if rest is not None:
                source.lane = self._spawn(rest)
        elif source.waiting >= MAX_WAITING:
            self._tell_off(source)
        else:
            source.waiting += 1
            source.lane = self._spawn(self._handle_after(before, source, message))

    async def _handle_after(self, before: "asyncio.Task[None]", source: Source, message: Message | Malformed) -> None:
        await asyncio.wait([before])
        source.waiting -= 1
        rest = self._handle(source, message)
        if rest is not None:
            await rest

    def _handle(self, source: Source, message: Message | Malformed) -> Coroutine[Any, Any, None] | None:
        """Answer a message; return what is left to wait for."""
        if isinstance(message, Malformed):
            self._fail(source, message.address, Code.BAD_REQUEST, f"This is not OSC: {message.reason}.")
        elif is_pattern(message.address):
            self._answer_pattern(source, message)
        elif message.address not in self._methods:
            sentence = f"There is no {message.address}; /rvcd/methods lists what there is."
            self._fail(source, message.address, Code.UNKNOWN_ADDRESS, sentence)
        else:
            return self._call(source, *self._methods[message.address], message)
        return None

    def _call(
        self, source: Source, method: Method, handler: Handler, message: Message
    ) -> Coroutine[Any, Any, None] | None:
        call = Call(self._clients, self._spawn, source, method, message)
        try:
            call.values = values_of(method, message.args)
            self._requests.check_authorized(source, method)
            if method.kind == "command" and call.req:
                key = (str(call.client.endpoint), method.address, call.req)
                answers = self._retries.recall(key)
                if answers is not None:
                    call.repeat(answers)
                    return None
                call.answers = self._retries.begin(key)
            rest = handler(call)
        except Exception as error:
            call.fail(error)
            return None
        return None if rest is None else _finish(call, rest)

    def _answer_pattern(self, source: Source, message: Message) -> None:
        """Answer all queries that a pattern matches and whose arguments fit; commands are never called so."""
        matching = [pair for pair in self._methods.values() if matches(message.address, pair[0].address)]
        queries = [(method, handler) for method, handler in matching if method.kind == "query"]
        if not queries:
            code = Code.NOT_ALLOWED if matching else Code.UNKNOWN_ADDRESS
            sentence = "A pattern may ask questions only." if matching else "This pattern matches nothing."
            self._fail(source, message.address, code, sentence)
        for method, handler in queries:
            if _fits(method, message):
                self._call(source, method, handler, message._replace(address=method.address))

    def _tell_off(self, source: Source) -> None:
        if source.may_be_told_off(self._clock()):
            self._fail(source, "", Code.BUSY, "Too many messages from you; some are not answered.")

    def _fail(self, source: Source, address: str, code: Code, sentence: str) -> None:
        self._clients.send(source.client, outgoing("/rvcd/fail", address, "", code, sentence))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def handler_of(requests: Requests, method: Method) -> Handler:
    """Method of `Requests` that is named like an address: `/rvcd/model/load` is `model_load`."""
    name = method.address.removeprefix("/rvcd").removeprefix("/").replace("/", "_")
    handler: Handler = getattr(requests, name)
    return handler


async def _finish(call: Call, rest: Awaitable[None]) -> None:
    try:
        await rest
    except Exception as error:
        call.fail(error)


def _fits(method: Method, message: Message) -> bool:
    try:
        values_of(method, message.args)
    except RvcdError:
        return False
    return True

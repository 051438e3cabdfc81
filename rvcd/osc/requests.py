"""What each request does: one method of `Requests` per row of the table, named like its address."""

# ruff: noqa: D102  (the table says what each one does)

import hmac
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rvcd.errors import Code, RvcdError
from rvcd.jobs import Job, Progressed
from rvcd.osc import PROTOCOL
from rvcd.osc.arguments import absolute_path, choice, convert_request, pairs_of
from rvcd.osc.calls import Call
from rvcd.osc.clients import CAPABILITIES, TOPICS, Client, Clients, Source
from rvcd.osc.control import Accepted, Control, JobFilter, Soon, WatchAction
from rvcd.osc.methods import DEFAULT_LEASE_SECONDS, MAX_LEASE_SECONDS, MAX_LISTED_JOBS, METHODS, Method
from rvcd.osc.reporter import Reporter, elapsed_seconds

_Result = TypeVar("_Result")


class Requests:
    """Answers calls out of what `Control` says."""

    def __init__(
        self,
        control: Control,
        clients: Clients,
        reporter: Reporter,
        clock: Callable[[], float],
        instance: str,
        token: str,
    ) -> None:
        self._control = control
        self._clients = clients
        self._reporter = reporter
        self._clock = clock
        self._instance = instance
        self._token = token

    def check_authorized(self, source: Source, method: Method) -> None:
        """Raise `RvcdError` `unauthorized` if a source may not change what others see."""
        if self._token and method.needs_token and not source.authorized:
            raise RvcdError(
                Code.UNAUTHORIZED, f"{method.address} needs the token: say it in /rvcd/hello from this port first."
            )

    # who is there

    def hello(self, call: Call) -> None:
        name, _, reply_port = call.values
        pairs = pairs_of(call.rest, {"token": "s", "capabilities": "s"})
        if "token" in pairs and self._token:
            call.source.authorized = hmac.compare_digest(pairs["token"].encode(), self._token.encode())
            if not call.source.authorized:
                raise RvcdError(Code.UNAUTHORIZED, "The token is wrong; read it from the file that `rvcd run` names.")
        client = call.client = self._redirected(call, reply_port)
        client.name = name
        client.capabilities = frozenset(_words(pairs.get("capabilities", "")))
        client.touch(self._clock())
        capabilities = ",".join((*CAPABILITIES, *(["token"] if self._token else [])))
        version = self._control.about().version
        call.reply(
            "/rvcd/hello.reply", version, PROTOCOL, client.id, self._instance, capabilities, DEFAULT_LEASE_SECONDS
        )

    def ping(self, call: Call) -> None:
        call.reply("/rvcd/pong", *call.rest)

    def notify(self, call: Call) -> None:
        on, lease, topics, reply_port = call.values
        if reply_port:
            call.client = self._redirected(call, reply_port)
        client = call.client
        if not on:
            client.unsubscribe()
            call.reply("/rvcd/done", call.address, "", client.id, 0)
            return
        words = _words(topics)
        if unknown := words - TOPICS - {"event"}:
            raise RvcdError(
                Code.BAD_REQUEST, f"{', '.join(sorted(unknown))}: no such topic; known are {', '.join(sorted(TOPICS))}."
            )
        lease = min(max(lease, 1), MAX_LEASE_SECONDS)
        client.subscribe(lease, words & TOPICS or TOPICS, lines="event" in words, now=self._clock())
        call.reply("/rvcd/done", call.address, "", client.id, lease)
        if "jobs" in client.topics:
            for job in self._control.jobs("active", MAX_LISTED_JOBS):
                self._reporter.tell_one(client, self._reporter.latest(job))

    def ack(self, call: Call) -> None:
        call.client.unacked.pop(call.values[0], None)

    def sync(self, call: Call) -> None:
        (token,) = call.values
        call.after(tuple(call.client.work), lambda: call.reply("/rvcd/synced", token))

    # questions

    def version(self, call: Call) -> None:
        about = self._control.about()
        call.reply("/rvcd/version.reply", about.version, PROTOCOL, about.platform, about.backend, about.build)

    def status(self, call: Call) -> None:
        now = self._control.status()
        counts = (now.queued, now.running, now.done, now.failed, now.models_warm)
        call.reply(
            "/rvcd/status.reply",
            *(now.state, *counts, now.active_model, now.uptime_seconds, now.memory_megabytes, now.detail),
        )

    def job(self, call: Call) -> None:
        job = self._control.job(call.values[1])
        self._reporter.tell_one(call.client, self._reporter.latest(job))

    def jobs(self, call: Call) -> None:
        _, which, limit = call.values
        which = choice(which or "active", JobFilter, "filter")
        jobs = self._control.jobs(which, min(max(limit, 0), MAX_LISTED_JOBS))
        for job in jobs:
            call.reply("/rvcd/job/info", call.req, *self._job_info(job))
        call.reply("/rvcd/jobs.end", call.req, len(jobs))

    def models(self, call: Call) -> None:
        models = self._control.models()
        for model in models:
            call.reply("/rvcd/model/info", call.req, model.name, model.state, model.sample_rate, model.megabytes)
        call.reply("/rvcd/models.end", call.req, len(models))

    def methods(self, call: Call) -> None:
        for method in METHODS:
            call.reply("/rvcd/method", method.address, method.signature, method.doc)
        call.reply("/rvcd/methods.end", call.req, len(METHODS))

    # commands

    def convert(self, call: Call) -> Awaitable[None] | None:
        request = convert_request(call.req, call.values[1], call.rest, str(call.client.endpoint))

        def accepted(job: Accepted) -> None:
            call.reply("/rvcd/accepted", call.req, job.job_id, job.position)

        return _then(self._control.submit(request), accepted)

    def cancel(self, call: Call) -> Awaitable[None] | None:
        job = call.values[1]
        client = str(call.client.endpoint)
        return _then(self._control.cancel(None if job == -1 else job, client), call.done)

    def restore(self, call: Call) -> None:
        target = call.values[1]
        if isinstance(target, str):
            call.later(self._control.restore(absolute_path(target, "path")))
        else:
            call.later(self._control.restore(int(target)), job=int(target))

    def model_load(self, call: Call) -> None:
        call.later(self._control.load_model(call.values[1]))

    def model_unload(self, call: Call) -> None:
        call.later(self._control.unload_model(call.values[1]))

    def watch(self, call: Call) -> Awaitable[None] | None:
        action = call.values[1]
        if action == "list":
            self._list_folders(call)
            return None
        return _then(self._control.watch(choice(action, WatchAction, "action")), call.done)

    def hold(self, call: Call) -> Awaitable[None] | None:
        _, path, seconds = call.values
        return _then(self._control.hold(absolute_path(path, "path"), seconds), call.done)

    def release(self, call: Call) -> Awaitable[None] | None:
        return _then(self._control.release(absolute_path(call.values[1], "path")), call.done)

    def _redirected(self, call: Call, reply_port: int) -> Client:
        if not 0 <= reply_port <= 65535:
            raise RvcdError(Code.BAD_REQUEST, f"reply_port must lie between 0 and 65535, not {reply_port}.")
        return self._clients.redirect(call.source, reply_port)

    def _list_folders(self, call: Call) -> None:
        folders = self._control.folders()
        for folder in folders:
            values = (folder.path, folder.state, folder.pending, folder.unreadable, folder.voice)
            call.reply("/rvcd/watch/info", call.req, *values)
        call.reply("/rvcd/watch.end", call.req, len(folders))

    def _job_info(self, job: Job) -> tuple[Any, ...]:
        event = self._reporter.latest(job)
        seconds_left = event.seconds_left if isinstance(event, Progressed) else -1.0
        times = (seconds_left, elapsed_seconds(job), job.seconds_of_audio)
        voice = job.voice or job.request.voice or ""
        return (job.id, job.state, job.request.path, job.fraction, job.code, job.stage, *times, voice)


def _words(csv: str) -> frozenset[str]:
    return frozenset(word.strip() for word in csv.split(",") if word.strip())


def _then(result: Soon[_Result], go_on: Callable[[_Result], None]) -> Awaitable[None] | None:
    """Go on with a result, at once if it is there."""
    if not inspect.isawaitable(result):
        go_on(result)
        return None

    async def wait() -> None:
        go_on(await result)

    return wait()

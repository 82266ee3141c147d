"""One worker process: a pump for each group the app subscribes, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, Protocol, TypeVar

from headrace import limits
from headrace.backends.contract import Backend, Feed, Subscription
from headrace.backoff import Backoff
from headrace.errors import BackendError, ConfigurationError, NotConnected, Overloaded
from headrace.observe import LogObserver, Observer
from headrace.runtime.execute import Executor
from headrace.runtime.pruning import prune_always
from headrace.runtime.pump import Pump
from headrace.runtime.signals import Stop, stopping
from headrace.settings import Settings
from headrace.topic import Group

log = logging.getLogger("headrace")
_THREADS = "headrace-handler"
_THREADS_S = 1.0
"""How long a worker that has stopped waits for its threads."""
T = TypeVar("T")


class App(Protocol):
    """What a worker needs of an app."""

    @property
    def groups(self) -> Mapping[tuple[str, str], Group]:
        """What it subscribes."""

    @property
    def settings(self) -> Settings:
        """Where its server is."""

    @property
    def connected(self) -> Settings | None:
        """The same, once it is connected."""

    @property
    def lease_s(self) -> float:
        """How long its workers may be silent."""

    async def connect(self) -> None:
        """Connects."""

    def backend(self) -> Backend:
        """The connected backend."""

    async def aclose(self) -> None:
        """Disconnects."""


def worker_name() -> str:
    """This worker's name, never used by another life: host, process id, and chance."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:48]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


async def serve(app: App, stop: Stop, observer: Observer | None = None) -> BackendError | None:
    """Serves every subscription of the app until `stop` is asked; returns why it ended by itself, or None.

    Raises ConfigurationError if the app subscribes nothing, DurabilityError, Refused. An absent server is waited for.
    """
    if not app.groups:
        raise ConfigurationError("the app has no subscriptions: decorate a function with @topic.subscribe(group)")
    pools = {group: ThreadPoolExecutor(min(group.lanes, 256), _THREADS) for group in app.groups.values()}
    try:
        await connect(app, stop)
        if stop.asked.is_set():
            return None
        pumps = await _unless_stopped(_start(pools, app.backend(), observer or LogObserver(), app.lease_s), stop)
        if pumps is None:
            return None
        pruning = asyncio.ensure_future(prune_always(app.groups.values(), app.connected or app.settings))
        try:
            return await _run(pumps, stop)
        finally:
            pruning.cancel()
            await asyncio.gather(pruning, return_exceptions=True)
    finally:
        await app.aclose()
        for threads in pools.values():
            threads.shutdown(wait=False, cancel_futures=True)


async def _unless_stopped(work: Coroutine[Any, Any, T], stop: Stop) -> T | None:
    """What `work` returns; None if stop was asked before: then it is given up. It may wait for a server for ever."""
    working, asked = asyncio.ensure_future(work), asyncio.ensure_future(stop.asked.wait())
    await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return None


async def _run(pumps: Sequence[Pump], stop: Stop) -> BackendError | None:
    running = [asyncio.ensure_future(p.run()) for p in pumps]
    asked = asyncio.ensure_future(stop.asked.wait())
    gc.freeze()  # what is loaded by now lives as long as the process; the collector need not look at it again
    await asyncio.wait([asked, *running], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    await _drain(pumps, stop)
    ended = await asyncio.gather(*running, return_exceptions=True)
    for bug in ended:
        if isinstance(bug, BaseException):
            raise bug
    return next((p.error for p in pumps if p.error is not None), None)


async def start(
    groups: Iterable[Group], backend: Backend, threads: ThreadPoolExecutor, observer: Observer, lease_s: float
) -> list[Pump]:
    """A pump, joined to its group, for each group. An absent or full server is waited for. Raises Refused."""
    return await _start(dict.fromkeys(groups, threads), backend, observer, lease_s)


async def _start(
    groups: Mapping[Group, ThreadPoolExecutor], backend: Backend, observer: Observer, lease_s: float
) -> list[Pump]:
    """As `start`, each group with threads of its own: those of another may all hang."""
    name = worker_name()
    pumps = []
    for group, threads in groups.items():
        feed = await _join(backend, group, name, lease_s)
        executor = Executor(group, backend.features.effects, threads, observer)
        pumps.append(Pump(feed, executor, group.lanes, observer))
        log.info("serving group %s of topic %s as %s", group.name, group.topic.name, name)
    return pumps


async def _join(backend: Backend, group: Group, name: str, lease_s: float) -> Feed:
    backoff = Backoff(f"joining group {group.name} of topic {group.topic.name}")
    while True:
        try:
            return await backend.subscribe(
                Subscription(
                    group.topic.route,
                    group.name,
                    name,
                    group.start,
                    lease_s,
                    ordered=group.ordered,
                    on_failure=group.on_failure,
                )
            )
        except (NotConnected, Overloaded) as e:
            await backoff.wait(e)


async def connect(app: App, stop: Stop) -> None:
    """Waits for an absent server: a program may be started before it. Wrong passwords and levels are not waited for."""
    backoff = Backoff("connecting")
    while not stop.asked.is_set():
        try:
            await app.connect()
        except NotConnected as e:
            if app.settings.url:
                await backoff.wait(e)
                continue
            raise
        return


async def _drain(pumps: Sequence[Pump], stop: Stop) -> None:
    draining = asyncio.ensure_future(asyncio.gather(*(p.drain(limits.stop_s) for p in pumps)))
    now = asyncio.ensure_future(stop.now.wait())
    await asyncio.wait([draining, now], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
    if not draining.done():
        log.warning("stopping now; handlers at work are cut off and their events handed back")
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        await asyncio.gather(*(p.drain(0.0) for p in pumps))
    now.cancel()


async def _end_leaked_tasks(code: int) -> None:
    """Tasks that handlers left behind are cancelled; those that ignore it do not keep the process alive."""
    leaked = asyncio.all_tasks() - {asyncio.current_task()}
    for task in leaked:
        task.cancel()
    if leaked and (await asyncio.wait(leaked, timeout=limits.abandon_s))[1]:
        _end_around("tasks that handlers left behind ignore their cancellation", code)


async def _end_threads(code: int) -> None:
    """Idle threads end in a moment; the interpreter would wait for ever for those that are still at work."""
    end = time.monotonic() + _THREADS_S
    while any(t.name.startswith(_THREADS) for t in threading.enumerate()):
        if time.monotonic() > end:
            _end_around("threads of handlers are still at work and cannot be stopped", code)
        await asyncio.sleep(0.01)


def _end_around(what: str, code: int) -> NoReturn:
    """Everything of ours is committed or handed back."""
    log.error("%s; ending the process around them", what)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or a handler has closed it
            stream.flush()
    os._exit(code)


def main(app: App, parent_pipe: int | None = None) -> int:
    """Runs a worker in this process until SIGTERM or SIGINT; returns the exit code.

    0: it was stopped; 1: what a handler has started ended the process, as `sys.exit()` in a task of its own does; 4: refused by the server.
    Raises what `serve` raises.
    """
    stop, exits = Stop(), list[BaseException]()

    async def run() -> int:
        code = 1
        threads = ThreadPoolExecutor(thread_name_prefix=_THREADS)
        asyncio.get_running_loop().set_default_executor(threads)
        with stopping(stop, parent_pipe):
            try:
                error = await serve(app, stop)
                code = 1 if exits else 0 if error is None else 4
            finally:
                await _end_leaked_tasks(code)
                threads.shutdown(wait=False, cancel_futures=True)
                await _end_threads(code)
        return code

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        running = loop.create_task(run())
        while True:
            try:
                return loop.run_until_complete(running)
            except (SystemExit, KeyboardInterrupt) as e:  # asyncio lets them through all that runs; the loop can go on
                if running.done():
                    raise
                log.critical("a task that a handler has started ended with %r; this worker stops", e)
                exits.append(e)
                stop.asked.set()

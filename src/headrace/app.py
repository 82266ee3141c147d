"""The application: topics, subscriptions, one connection to a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType, UnionType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from headrace import backends, limits, settings
from headrace.backends.contract import Backend
from headrace.errors import Closed, ConfigurationError
from headrace.route import TopicOptions, route
from headrace.settings import Settings
from headrace.topic import Group, Topic
from headrace.transaction import Outgoing

if TYPE_CHECKING:
    from headrace.embedded.server import EmbeddedServer
    from headrace.testing.harness import Testing

T = TypeVar("T")


class Headrace:
    """Declares topics and subscriptions; `async with app` connects.

    `url`: HEADRACE_URL, else REDIS_URL, else a private embedded Valkey of this project. `durability`: `fsync` (default), `quorum`,
    `relaxed`, or HEADRACE_DURABILITY. Nothing is connected before `async with` or `headrace run`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        durability: str | None = None,
        lease_s: float = limits.lease_s,
        outbox: Outgoing | None = None,
    ) -> None:
        """Raises ConfigurationError for settings that cannot be meant.

        `lease_s`: how long a worker may be silent before others take over what it holds. `outbox` (headrace.once.Outbox): where
        `publish(..., sql=session)` writes.
        """
        if not limits.lease_s_min <= lease_s <= limits.lease_s_max:
            raise ConfigurationError(f"lease_s: expected {limits.lease_s_min} to {limits.lease_s_max}, got {lease_s!r}")
        self.settings = settings.load(url, durability)
        self.lease_s = lease_s
        self.outbox = outbox
        self.topics: dict[str, Topic[Any]] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self._backend: Backend | None = None
        self._server: EmbeddedServer | None = None
        self._users = 0
        """Blocks that are entered."""
        self._kept = False
        """Whether `connect` was called: then it stays connected when the last block ends."""
        self._home: asyncio.AbstractEventLoop | None = None
        """Where it is connected, or is being connected; a connection that two event loops or processes write to mixes up their answers."""
        self._pid = 0
        """Of the process of that event loop."""
        self._opening: asyncio.Future[None] | None = None
        """Done when the task that connects has ended, well or not."""
        self.connected: Settings | None = None
        """The settings with the URL that was used last; that of the embedded server if none was given."""

    @overload
    def topic(
        self,
        name: str,
        event_type: type[T],
        *,
        key: str | Callable[[T], object] | None = None,
        **options: Unpack[TopicOptions],
    ) -> Topic[T]: ...

    @overload
    def topic(
        self,
        name: str,
        event_type: UnionType | type[Any],  # of a union of Structs mypy thinks it is one or the other
        *,
        key: str | Callable[[Any], object] | None = None,
        **options: Unpack[TopicOptions],
    ) -> Topic[Any]: ...

    def topic(
        self,
        name: str,
        event_type: Any,
        *,
        key: str | Callable[[Any], object] | None = None,
        **options: Unpack[TopicOptions],
    ) -> Topic[Any]:
        """A topic of events of one type, or of a union of classes.

        `key`: the field (or a function) that gives the ordering key. `options`: see TopicOptions. Raises ConfigurationError.
        """
        if name in self.topics:
            raise ConfigurationError(f"topic {name} is declared twice; keep the Topic object and use it in both places")
        topic: Topic[Any] = Topic(self, route(name, options), event_type, key)
        self.topics[name] = topic
        return topic

    def backend(self) -> Backend:
        """The connected backend. Raises Closed outside `async with app`, ConfigurationError in another process or event loop than that."""
        if self._backend is None:
            raise Closed("not connected: publish inside `async with app:`, or from a handler by ctx.publish")
        if _running() is not self._home:
            self._require_home()
        return self._backend

    def _require_home(self) -> None:
        if self._home is None or self._home is _running():
            return
        if self._pid != os.getpid():
            raise ConfigurationError(
                "this app is connected in another process, from which this one was forked: fork before `async with app`, or make another "
                "Headrace in the child; nothing was done"
            )
        raise ConfigurationError(
            "this app is connected in another event loop: make another Headrace for this thread, or publish there, by "
            "asyncio.run_coroutine_threadsafe; nothing was done"
        )

    def _settle_in(self) -> None:
        self._home, self._pid = asyncio.get_running_loop(), os.getpid()

    async def connect(self) -> None:
        """Connects until `aclose`. Raises as `async with` does."""
        async with self:
            self._kept = True

    async def _connect(self) -> None:
        """Starts the embedded server if no URL was given."""
        chosen = self.settings
        if not chosen.url:
            from headrace.embedded import server  # noqa: PLC0415 - only programs without a URL pay for it

            self._server = await asyncio.to_thread(server.start)
            chosen = settings.at(chosen, self._server.url)
        self.connected = chosen
        try:
            self._backend = await backends.connect(chosen)
        except BaseException:
            held, self._server = self._server, None
            if held is not None:
                held.close()
            raise

    @contextlib.asynccontextmanager
    async def testing(self) -> AsyncIterator[Testing]:
        """The app on a memory backend with virtual time, its handlers served: `async with app.testing() as t`. See headrace.testing."""
        from headrace.testing.harness import Testing  # noqa: PLC0415 - only tests pay for it

        if self._home is not None:
            raise ConfigurationError("app.testing() is used instead of `async with app`, not inside it")
        testing = Testing(self.groups.values(), self.lease_s)
        self._settle_in()
        self._backend = testing.backend
        self._users += 1
        try:
            async with testing:
                yield testing
        finally:
            self._users -= 1
            self._backend = self._home = None

    async def relay(self) -> None:
        """Sends what is in the outbox until it is cancelled, beside whatever else the program does. Raises ConfigurationError, Refused, Closed."""
        if self.outbox is None:
            raise ConfigurationError("there is nothing to relay: Headrace(outbox=Outbox(engine))")
        from headrace.once.outbox import Outbox  # noqa: PLC0415 - only programs with an outbox have SQLAlchemy
        from headrace.once.relay import Relay  # noqa: PLC0415 - likewise

        if not isinstance(self.outbox, Outbox):
            raise ConfigurationError(f"outbox: expected headrace.once.Outbox, got {self.outbox!r}")
        await Relay(self.outbox, self.backend(), {t.name: t.route for t in self.topics.values()}).run()

    async def aclose(self) -> None:
        """Disconnects; idempotent. What was not acknowledged fails with Closed at its publisher. Raises ConfigurationError in another event loop."""
        if self._home is not None and self._pid != os.getpid():
            return  # what a forked child has inherited is its parent's
        self._require_home()
        await self._opened()
        backend, self._backend = self._backend, None
        server, self._server = self._server, None  # whoever connects meanwhile has a hold of its own
        self._kept, self._home = False, None
        try:
            if backend is not None:
                await backend.aclose()
        finally:
            if server is not None:
                server.close()

    async def _opened(self) -> None:
        """Returns when no task is connecting."""
        while self._opening is not None:
            await asyncio.wait([self._opening])

    async def __aenter__(self) -> Self:
        """Connects, if that has not been done: blocks may be nested, and entered by several tasks at once.

        Raises ConfigurationError, DurabilityError, NotConnected, Refused.
        """
        self._require_home()
        await self._opened()
        if self._backend is None:
            self._settle_in()
            opening = self._opening = asyncio.get_running_loop().create_future()
            try:
                await self._connect()
            finally:
                if self._backend is None:
                    self._home = None
                self._opening = None
                opening.set_result(None)  # those who wait use what was opened, or try themselves
        self._users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects when the outermost block ends."""
        self._users -= 1
        if not self._users and not self._kept:
            await self.aclose()


def _running() -> asyncio.AbstractEventLoop | None:
    """The event loop of this process; none also in a child that was forked inside a coroutine."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

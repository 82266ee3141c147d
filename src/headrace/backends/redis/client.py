"""The server as one thing that can be called: connects, connects again, loads scripts, knows the topology (a single server)."""

from __future__ import annotations

import asyncio
import hashlib
from importlib import resources
from typing import Any, Final

from msgspec import Struct

from headrace.backends.redis.connection import Wire, open_wire, pack
from headrace.backends.redis.keys import TOPICS
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import BackendError, Closed, Refused
from headrace.settings import Settings


class Script(Struct, frozen=True):
    """A server script: called by digest, so that two releases can run side by side."""

    name: str
    text: str
    digest: bytes


def load_script(name: str, text: str | None = None) -> Script:
    """A script of this package by name; `text` replaces its source (the tests break scripts on purpose)."""
    source = text or resources.files("headrace.backends.redis").joinpath("scripts", f"{name}.lua").read_text(
        encoding="utf-8"
    )
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest().encode())  # noqa: S324 - the digest that EVALSHA is defined by


_NAMES: Final = ("publish", "join", "commit", "tend", "claim", "leave", "trim", "ledger", "move", "seek")


def load_scripts() -> dict[str, Script]:
    """All scripts of the package by name."""
    return {name: load_script(name) for name in _NAMES}


class Client:
    """Calls a server over one shared connection, and opens further ones for blocking reads.

    A call that fails with NotConnected has an unknown outcome; the next call connects again.
    """

    def __init__(self, settings: Settings, scripts: dict[str, Script] | None = None) -> None:
        """Connects on first use."""
        self.settings = settings
        self.scripts = load_scripts() if scripts is None else scripts
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self.registered: set[str] = set()
        """Topics known to be on the server's list."""
        self._closed = False

    def head(self, name: str, keys: int) -> tuple[bytes, ...]:
        """The first words of a call of the script: EVALSHA, digest, number of keys."""
        return (b"EVALSHA", self.scripts[name].digest, b"%d" % keys)

    async def open(self, silence_s: float | None = None) -> Wire:
        """A further connection with every script loaded; the caller closes it."""
        if self._closed:
            raise Closed("the app was closed")
        wire = await open_wire(self.settings, silence_s or self.settings.request_s)
        try:
            await self._load(wire)
        except BaseException:
            wire.close()
            raise
        return wire

    async def wire(self) -> Wire:
        """The shared connection, opened if need be; concurrent callers share one attempt."""
        if self._closed:
            raise Closed("the app was closed")
        if self._wire is not None and self._wire.closed is None:
            return self._wire
        if self._opening is None:
            self._opening = asyncio.ensure_future(self.open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: asyncio.Task[Wire]) -> None:
        self._opening = None
        if not task.cancelled() and task.exception() is None:
            self._wire = task.result()
            if self._closed:
                self._wire.close()

    def connected(self) -> Wire | None:
        """The shared connection if it is there right now."""
        return self._wire if self._wire is not None and self._wire.closed is None else None

    async def command(self, *words: bytes | str | int | float) -> Any:
        """Sends a plain command and returns its reply."""
        return await (await self.wire()).send(pack(words))

    async def call(self, name: str, keys: tuple[bytes, ...], *words: bytes | str | int | float) -> Any:
        """Runs a script and returns its reply; loads it again if the server has forgotten it (restart, SCRIPT FLUSH)."""
        wire = await self.wire()
        packed = pack((*self.head(name, len(keys)), *keys, *words))
        try:
            return await wire.send(packed)
        except ServerSaid as e:
            if e.code != "NOSCRIPT":
                raise
        await self._load(wire)
        return await wire.send(packed)

    async def register(self, topic: str, partitions: int) -> None:
        """Puts a topic on the server's list of topics, once. A failure is no matter: the next use of the topic does it."""
        if topic in self.registered:
            return
        self.registered.add(topic)
        try:
            await self.command("HSETNX", TOPICS, topic, partitions)
        except BackendError:
            self.registered.discard(topic)

    def drop(self) -> None:
        """Gives up the shared connection; the next call opens a new one, which loads the scripts."""
        if self._wire is not None:
            self._wire.close()

    async def _load(self, wire: Wire) -> None:
        replies = [wire.send(pack((b"SCRIPT", b"LOAD", s.text))) for s in self.scripts.values()]
        for answer in await asyncio.gather(*replies, return_exceptions=True):
            if isinstance(answer, ServerSaid) and answer.code == "ERR":
                raise Refused(
                    f"the server does not take our scripts: it must be Redis 7.0 or newer, or Valkey 7.2 or newer ({answer})"
                ) from answer
            if isinstance(answer, BaseException):
                raise answer

    async def aclose(self) -> None:
        """Closes the shared connection. Idempotent."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.close()

"""One server as a thing that can be called: connects, connects again, loads the scripts."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final

from msgspec import Struct

from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import Closed, Refused


class Script(Struct, frozen=True):
    """A server script: called by digest, so that two releases can run side by side."""

    name: str
    text: str
    digest: bytes


def _source(name: str) -> str:
    """A file of the folder `scripts`; a line `-- include NAME` in it stands for the file `parts/NAME.lua`."""
    folder = resources.files("headrace.backends.redis").joinpath("scripts")
    text = folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return re.sub(
        r"^-- include (\w+)\n",
        lambda found: folder.joinpath("parts", f"{found[1]}.lua").read_text(encoding="utf-8"),
        text,
        flags=re.MULTILINE,
    )


def load_script(name: str, text: str | None = None) -> Script:
    """A script of this package by name; `text` replaces its source (the tests break scripts on purpose)."""
    source = text or _source(name)
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest().encode())  # noqa: S324 - the digest that EVALSHA is defined by


_NAMES: Final = (
    *("publish", "join", "commit", "tend", "claim", "leave", "trim", "ledger", "move", "seek"),
    *("advance", "lease", "members", "grow", "count"),
)


def load_scripts() -> dict[str, Script]:
    """All scripts of the package by name."""
    return {name: load_script(name) for name in _NAMES}


class Node:
    """Calls one server over a shared connection, and opens further ones for blocking reads.

    A call that fails with NotConnected has an unknown outcome; the next call connects again.
    """

    def __init__(
        self, connect: Callable[[float], Awaitable[Wire]], request_s: float, scripts: dict[str, Script]
    ) -> None:
        """Connects on first use: `connect` opens a connection that is given up after so many seconds of silence."""
        self._connect = connect
        self._request_s = request_s
        self._scripts = scripts
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self._closed = False

    async def open(self, silence_s: float | None = None) -> Wire:
        """A further connection with every script loaded; the caller closes it."""
        if self._closed:
            raise Closed("the app was closed")
        wire = await self._connect(silence_s or self._request_s)
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
        opening = self._opening
        await asyncio.wait([opening])
        if opening.cancelled():  # by nobody but `close`
            raise Closed("the app was closed")
        return opening.result()

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
        packed = pack((b"EVALSHA", self._scripts[name].digest, b"%d" % len(keys), *keys, *words))
        try:
            return await wire.send(packed)
        except ServerSaid as e:
            if e.code != "NOSCRIPT":
                raise
        await self._load(wire)
        return await wire.send(packed)

    async def _load(self, wire: Wire) -> None:
        replies = [wire.send(pack((b"SCRIPT", b"LOAD", s.text))) for s in self._scripts.values()]
        for answer in await asyncio.gather(*replies, return_exceptions=True):
            if isinstance(answer, ServerSaid) and answer.code == "ERR":
                raise Refused(
                    f"the server does not take our scripts: it must be Redis 7.0 or newer, or Valkey 7.2 or newer ({answer})"
                ) from answer
            if isinstance(answer, BaseException):
                raise answer

    def close(self) -> None:
        """Closes the shared connection. Idempotent."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._wire is not None:
            self._wire.close()

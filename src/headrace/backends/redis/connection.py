"""One connection: packed commands out, replies in order to the futures that wait for them.

redis-py opens, encrypts and authenticates it (so TLS, ACL users, sockets and databases work as people know them); then its
transport is given to the protocol below, because redis-py's command layer costs more per command than the server does
(`make bench` measures both).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis

from headrace.backends.redis import replies
from headrace.backends.redis.address import Address, Place
from headrace.backends.redis.replies import Demoted, Moved
from headrace.errors import BackendError, Closed, ConfigurationError, NotConnected

Words = tuple[bytes | str | int | float, ...]
pack: Callable[[Words], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub knows only tuples of one word
"""A command as it travels."""
_BUFFER_BYTES: Final = 1 << 18
_WATCH_S: Final = 1.0
_HIGH_WATER_BYTES: Final = 8 << 20


class Wire(asyncio.BufferedProtocol):
    """The protocol on an authenticated transport."""

    def __init__(self, writer: asyncio.StreamWriter, where: str, silence_s: float) -> None:
        """Takes over the writer's transport. If an answer is due and nothing arrives for `silence_s`, the connection is given up."""
        transport = writer.transport
        self._writer = writer  # kept, because its finalizer closes the transport
        self._transport = transport
        self._where = where
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._heard = self._loop.time()
        self.closed: NotConnected | Closed | None = None
        """Why nothing can be sent any more; None while the connection lives."""
        self.on_moved: Callable[[Moved], None] | None = None
        """Told when the server says that a slot is elsewhere."""
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        transport.set_protocol(self)
        self._watch = self._loop.call_later(_WATCH_S, self._check_silence)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the buffer has one size
        """Where the event loop puts what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hands complete replies to their futures, in order."""
        reader, waiting = self._reader, self._waiting
        self._heard = self._loop.time()
        reader.feed(self._buffer[:nbytes])  # type: ignore[arg-type]  # takes any buffer
        while (reply := reader.gets()) is not False:
            future = waiting.popleft()
            if future.done():
                continue
            if type(reply) is hiredis.ReplyError:
                future.set_exception(self._error(reply))
            else:
                future.set_result(reply)

    def _error(self, reply: hiredis.ReplyError) -> BackendError:
        error = replies.from_reply(reply)
        if type(error) is Moved and self.on_moved is not None:
            self.on_moved(error)
        elif type(error) is Demoted:  # whoever connects again asks who the primary is
            self._loop.call_soon(self.give_up, error)
        return error

    def give_up(self, error: NotConnected | Closed) -> None:
        """Closes at once; what still waits fails with NotConnected."""
        self._end(error)
        self._transport.abort()

    def eof_received(self) -> bool:
        """The server hung up."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails everything that still waits: its outcome is unknown."""
        self._end(
            NotConnected(f"{self._where}: the connection was cut ({exc or 'the server hung up'}); connecting again")
        )

    def _end(self, why: NotConnected | Closed) -> None:
        self._watch.cancel()
        if self.closed is None:
            self.closed = why
        for future in self._waiting:
            if not future.done():
                future.set_exception(NotConnected(str(self.closed)))
                future.exception()  # a reply that nobody awaits any more is not worth a warning
        self._waiting.clear()

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Writes a command now; the future is its reply. Raises NotConnected or Closed if the connection is gone."""
        if self.closed is not None:
            raise type(self.closed)(str(self.closed))
        if not self._waiting:
            self._heard = self._loop.time()
        self._transport.write(packed)
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def close(self) -> None:
        """Closes at once; what still waits fails with NotConnected."""
        self.give_up(Closed(f"{self._where}: the connection was closed"))

    def drop(self) -> None:
        """As `close`, but whoever has it in hand may connect again: the app goes on."""
        self.give_up(NotConnected(f"{self._where}: the connection was given up; connecting again"))

    def _check_silence(self) -> None:
        if self._waiting and self._loop.time() - self._heard > self._silence_s:
            self.give_up(NotConnected(f"{self._where}: no answer for {self._silence_s:.0f} s; connecting again"))
            return
        self._watch = self._loop.call_later(_WATCH_S, self._check_silence)


async def open_wire(place: Place, connect_s: float, where: str, silence_s: float, address: Address | None) -> Wire:
    """Opens and authenticates a connection to the address, or to the one server of the place. `where`: the URL, for people.

    Raises NotConnected, Refused or ConfigurationError.
    """
    arguments = place.arguments
    if address is not None:
        arguments = arguments | {"host": address[0], "port": address[1]}
        where = f"{where} ({address[0]}:{address[1]})"
    try:
        connection = place.connection(**arguments)
    except TypeError as e:
        raise ConfigurationError(f"url: {where}: unknown option ({e})") from None
    try:
        async with asyncio.timeout(connect_s):
            await connection.connect()  # type: ignore[no-untyped-call]
        reader, writer = connection._reader, connection._writer  # noqa: SLF001 - redis-py has no public way to hand over its transport
        if reader is None or writer is None or reader.at_eof() or writer.is_closing():  # nobody would tell the wire
            raise ConnectionError("the connection was cut while it was opened")  # noqa: TRY301 - it has to be closed, too
    except BaseException as e:
        with contextlib.suppress(Exception):  # it never was a connection; the reason is in `e`
            await connection.disconnect(nowait=True)
        if not isinstance(e, Exception):
            raise  # cancelled
        raise replies.from_client(e, where) from None
    wire = Wire(writer, where, silence_s)
    connection._reader = connection._writer = None  # noqa: SLF001 - or its finalizer would complain about what is ours now
    return wire

"""Real faults for tests: a proxy that cuts, tears, freezes and delays, and processes that are killed and paused.

    with Proxy(server_url) as proxy:
        proxy.fail(Fault.LOSE_REPLY, nth=3, when=command("XREADGROUP"))
        program = Program([sys.executable, "-m", "shop"], log, env={"HEADRACE_URL": proxy.url})
        assert proxy.fired.wait(10)             # the server has executed the third read, its reply is lost, the connection closed
        program.kill()

The proxy reads RESP2, so that it knows where a request or a reply ends and which reply answers which request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

_CHUNK_BYTES: Final = 1 << 16
_BULK, _ARRAY = ord("$"), ord("*")

Matcher = Callable[[Sequence[bytes]], bool]
"""Whether a request, given as its words, is meant."""


class Fault(Enum):
    """What happens to one request. Except for HOLD_REPLY, its connection is closed in the same moment."""

    LOSE_REQUEST = auto()
    """The server never sees it."""
    TEAR_REQUEST = auto()
    """The server sees half of it."""
    LOSE_REPLY = auto()
    """The server has executed it; the client never learns."""
    TEAR_REPLY = auto()
    """The client gets half of the reply."""
    HOLD_REPLY = auto()
    """The server has executed it; the connection stays open, and nothing more comes back through it."""


def anything(words: Sequence[bytes]) -> bool:  # noqa: ARG001 - a Matcher
    """Matches every request."""
    return True


def command(*first: str | bytes) -> Matcher:
    """Matches requests that begin with these words: `command("EVALSHA", digest)`. The case does not matter."""
    wanted = [(word.encode() if isinstance(word, str) else word).upper() for word in first]

    def matches(words: Sequence[bytes]) -> bool:
        return [word.upper() for word in words[: len(wanted)]] == wanted

    return matches


def frame_end(data: bytes | bytearray, start: int) -> int:
    """Where the RESP2 frame ends that begins at `start`; -1 if it is not complete."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return -1
    kind, end = data[start], line + 2
    if kind == _BULK:
        size = int(data[start + 1 : line])
        end += size + 2 if size >= 0 else 0
        return end if end <= len(data) else -1
    if kind == _ARRAY:
        for _ in range(int(data[start + 1 : line])):
            end = frame_end(data, end)
            if end < 0:
                return -1
    return end


def request_words(frame: bytes | bytearray) -> list[bytes]:
    """The words of a request, which is an array of bulk strings."""
    words: list[bytes] = []
    at = frame.find(b"\r\n") + 2
    while at < len(frame):
        line = frame.find(b"\r\n", at)
        size = int(frame[at + 1 : line])
        words.append(bytes(frame[line + 2 : line + 2 + size]))
        at = line + 2 + size + 2
    return words


class Proxy:
    """A TCP proxy on 127.0.0.1 before a server, in a thread of its own; every method may be called from any thread."""

    def __init__(self, target: str) -> None:
        """`target`: `unix:///path` or `redis://host:port`. Listens inside `with`."""
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._fault: Fault | None = None
        self._nth = 0
        self._when: Matcher = anything
        self.port = 0
        self.calls = 0
        """Requests since the last `fail` that matched it."""
        self.fired = threading.Event()
        """Set when the planned fault has happened."""
        self.delay_s = 0.0
        """How long everything is held up, each way."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}"

    def fail(self, fault: Fault | None, nth: int = 1, when: Matcher = anything) -> None:
        """The `nth` request from now that matches suffers the fault, once. None: none does; requests are only counted."""

        async def plan() -> None:
            self._fault, self._nth, self._when = fault, nth, when
            self.calls = 0
            self.fired.clear()

        self._call(plan())

    def cut(self) -> None:
        """Closes every connection; new ones are accepted."""

        async def close() -> None:
            for link in list(self._links):
                link.close()

        self._call(close())

    def freeze(self) -> None:
        """Connections stay open, new ones are accepted, and nothing moves: half-open TCP."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def thaw(self) -> None:
        """What was held up goes on."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def __enter__(self) -> Self:
        """Begins to listen."""
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        """Closes every connection and ends the thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for _ in range(10):
            await asyncio.sleep(0)  # a connection that is being accepted takes some turns of the loop to reach us
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # also of one that is closing, and waits for a reader who is gone
        await asyncio.sleep(0)  # transports are closed in the next turn

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers = [
            w for w in self._writers if not w.transport.is_closing() or w.transport.get_write_buffer_size()
        ]
        self._writers.append(writer)
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._target.scheme == "unix":
                upstream = await asyncio.open_unix_connection(self._target.path)
            else:
                upstream = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.transport.abort()  # the server is down: the client sees a connection that ends
            return
        self._writers.append(upstream[1])
        link = _Link(self, (reader, writer), upstream)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.close()

    async def hold_up(self) -> None:
        """For links: returns when bytes may move."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._flowing.wait()

    def judge(self, words: Sequence[bytes]) -> Fault | None:
        """For links: what is to happen to this request."""
        if not self._when(words):
            return None
        self.calls += 1
        return self._fault if self.calls == self._nth else None


class _Link:
    """One client's connection and ours to the server behind it."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._due: deque[Fault | None] = deque()
        """What happens to the replies that are still to come, in their order."""

    async def run(self) -> None:
        ways = [asyncio.ensure_future(way) for way in (self._requests(), self._replies())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self) -> None:
        data = bytearray()
        while chunk := await self._from_client.read(_CHUNK_BYTES):
            data += chunk
            await self._proxy.hold_up()
            at = 0
            while at < len(data) and (end := frame_end(data, at)) >= 0:
                fault = self._proxy.judge(request_words(data[at:end]))
                if fault in (Fault.LOSE_REQUEST, Fault.TEAR_REQUEST):
                    kept = at if fault is Fault.LOSE_REQUEST else (at + end) // 2
                    self._to_server.write(data[:kept])
                    self._proxy.fired.set()
                    return
                self._due.append(fault)
                at = end
            self._to_server.write(data[:at])
            del data[:at]
            await self._to_server.drain()

    async def _replies(self) -> None:
        data = bytearray()
        while chunk := await self._from_server.read(_CHUNK_BYTES):
            data += chunk
            await self._proxy.hold_up()
            at = 0
            while at < len(data) and (end := frame_end(data, at)) >= 0:
                fault = self._due.popleft() if self._due else None
                if fault is not None:
                    kept = (at + end) // 2 if fault is Fault.TEAR_REPLY else at
                    self._to_client.write(data[:kept])
                    self._proxy.fired.set()
                    if fault is not Fault.HOLD_REPLY:
                        return
                    while await self._from_server.read(_CHUNK_BYTES):
                        pass
                at = end
            self._to_client.write(data[:at])
            del data[:at]
            await self._to_client.drain()

    def close(self) -> None:
        """What was written before still arrives."""
        self._to_client.close()
        self._to_server.close()


class Program:
    """A process whose output goes to a file."""

    def __init__(
        self, words: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Starts it. `env` is added to our own environment."""
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(  # noqa: S603 - the tests say what to start
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=cwd,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def code(self) -> int | None:
        """Its exit code (negative: the signal that ended it); None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal; nothing happens if it is gone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead. A paused process dies too. Idempotent."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP; returns when it stands still."""
        self.send(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it is dead and buried: as still as can be
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM: asks it to end; see `wait`."""
        self.send(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Its exit code once it has ended. Raises TimeoutError."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"process {self.pid} still runs after {timeout_s} s; it said: {self.log[-2_000:]}"
            ) from None

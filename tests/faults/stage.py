"""What every test of faults stands on: a server, worker processes, a publisher, the ledger, and what must be exact at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from headrace.backends.contract import GroupInfo, Letter
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.backends.redis.node import load_script
from headrace.settings import Settings
from headrace.testing.faults import Matcher, Program, command
from tests.faults.apps import Job, Line, line
from tests.servers import Server
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]


class Call(NamedTuple):
    """One call of a handler."""

    n: int
    attempt: int
    pid: int


def script(name: str) -> Matcher:
    """Matches calls of one of our server scripts."""
    return command("EVALSHA", load_script(name).digest)


def plain(numbers: Iterable[int]) -> list[Job]:
    """Jobs that just add up."""
    return [Job(n) for n in numbers]


class Publishing:
    """Publishes in a thread, so that the test can break things meanwhile."""

    def __init__(self, ours: Line, jobs: Sequence[Job], chunk: int, pace_s: float) -> None:
        self._ours, self._jobs, self._chunk, self._pace_s = ours, jobs, chunk, pace_s
        self.acknowledged = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._publish())
        except BaseException as e:
            self._error = e

    async def _publish(self) -> None:
        async with self._ours.app:
            for start in range(0, len(self._jobs), self._chunk):
                chunk = self._jobs[start : start + self._chunk]
                await asyncio.gather(*(self._ours.jobs.publish(job) for job in chunk))
                self.acknowledged += len(chunk)
                await asyncio.sleep(self._pace_s)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def join(self, timeout_s: float = 40.0) -> None:
        """Returns when all is acknowledged; raises what publish() raised."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"publishing has not ended within {timeout_s} s"
        if self._error is not None:
            raise self._error


class Stage:
    """One server with everything around it. Kills what it started when it is closed, and prints what the workers said."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.workers: list[Program] = []

    def worker(
        self,
        app: str = "app",
        *words: str,
        url: str | None = None,
        lease_s: float = 1.0,
        silence_s: float = 15.0,
        victim: bool = False,
    ) -> Program:
        """Starts `headrace run` for an app of tests/faults/apps.py. Does not wait."""
        env = {
            "HEADRACE_URL": url or self.server.url,
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
            "FAULTS_DIR": str(self.directory),
            "FAULTS_ROLE": "victim" if victim else "",
            "FAULTS_LEASE_S": str(lease_s),
            "FAULTS_SILENCE_S": str(silence_s),
        }
        log = self.directory / f"worker-{len(self.workers)}.log"
        command_line = [sys.executable, "-m", "headrace", "run", f"tests.faults.apps:{app}", *words]
        program = Program(command_line, log, cwd=ROOT, env=env)
        self.workers.append(program)
        return program

    def publishing(
        self, jobs: Sequence[Job], *, url: str | None = None, chunk: int = 50, pace_s: float = 0.0, **settings: Any
    ) -> Publishing:
        """Begins to publish, `chunk` jobs at a time, with a pause after each."""
        return Publishing(line(url or self.server.url, **settings), jobs, chunk, pace_s)

    def publish(self, jobs: Sequence[Job]) -> None:
        """Publishes them all."""
        self.publishing(jobs, chunk=500).join()

    def release(self) -> None:
        """Handlers that hold go on."""
        (self.directory / "release").touch()

    # What can be seen

    @property
    def calls(self) -> list[Call]:
        """Calls of handlers so far."""
        with contextlib.suppress(FileNotFoundError):  # none yet
            text = (self.directory / "calls").read_text()
            return [Call(*map(int, row.split())) for row in text.splitlines(keepends=True) if row.endswith("\n")]
        return []

    def called(self, count: int, pid: int | None = None) -> None:
        """Waits for so many calls of handlers (in one process)."""
        wait_until(lambda: sum(pid in (None, c.pid) for c in self.calls) >= count, f"{count} calls of handlers")

    def group(self, topic: str = "jobs") -> GroupInfo:
        """The ledger of the group `g`."""
        return asyncio.run(self._group(topic))

    async def _group(self, topic: str) -> GroupInfo:
        inspector = RedisInspector(Client(Settings(url=self.server.url)))
        try:
            return next(info for info in await inspector.groups(topic) if info.group == "g")
        finally:
            await inspector.aclose()

    @property
    def pending(self) -> int:
        """Events of the topic that workers hold; 0 as long as there is no group."""
        with contextlib.suppress(hiredis.ReplyError):  # no topic or no group yet
            return int(self.server.command("XPENDING", "jobs", "g")[0])
        return 0

    def dead(self, topic: str = "jobs") -> list[Letter]:
        """The dead letters of `g`, with their reasons."""

        async def read() -> list[Letter]:
            inspector = RedisInspector(Client(Settings(url=self.server.url)))
            try:
                return list(await inspector.dead(topic, "g", count=1_000))
            finally:
                await inspector.aclose()

        return asyncio.run(read())

    def reasons(self) -> dict[int, str]:
        """Why each dead job is dead."""
        return {msgspec.json.decode(letter.data)["n"]: letter.reason for letter in self.dead()}

    def settled(self, handled: int, dead: int = 0, timeout_s: float = 20.0, topic: str = "jobs") -> None:
        """Waits until the group has settled so many."""

        def now() -> tuple[int, int]:
            count = self.server.command("HGET", f"{{{topic}}}:group:g", "handled")
            return int(count or 0), self.server.command("XLEN", f"{{{topic}}}:dead:g")

        def reached() -> bool:
            has = now()
            return has[0] >= handled and has[1] >= dead

        try:
            wait_until(reached, "settled", timeout_s)
        except AssertionError:
            raise AssertionError(
                f"not within {timeout_s} s: {handled} handled, {dead} dead; {self.group(topic)}"
            ) from None

    def serving(self, program: Program) -> None:
        """Waits until a worker has joined."""
        wait_until(lambda: "serving group" in program.log or program.code is not None, "the worker serves")
        assert program.code is None, program.log

    def exact(
        self, numbers: Iterable[int], dead: Iterable[int] = (), *, topic: str = "jobs", done: str = "done"
    ) -> None:
        """These were handled and those are dead, each exactly once, with exactly their traces; nothing else is anywhere."""
        handled, buried = sorted(numbers), sorted(dead)
        info = self.group(topic)
        assert info.missing == 0, info
        assert (info.handled, info.dead, info.dropped) == (len(handled), len(buried), 0), info
        assert (info.pending, info.unread, info.delayed, info.retrying) == (0, 0, 0, 0), info
        assert info.published == len(handled) + len(buried), info
        self.traces(handled, done)
        assert sorted(msgspec.json.decode(letter.data)["n"] for letter in self.dead(topic)) == buried

    def traces(self, numbers: Iterable[int], done: str = "done") -> None:
        """The sums and outputs are exactly those of these jobs."""
        handled = sorted(numbers)
        flat = self.server.command("HGETALL", f"sums.{done}")
        sums = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
        outputs = [fields for _, fields in self.server.command("XRANGE", done, "-", "+")]
        found = sorted(msgspec.json.decode(dict(zip(f[::2], f[1::2], strict=True))[b"data"])["n"] for f in outputs)
        assert found == handled, Counter(found) - Counter(handled) + (Counter(handled) - Counter(found))
        assert sums == ({"count": len(handled), "total": sum(handled)} if handled else {}), sums
        assert len({dict(zip(f[::2], f[1::2], strict=True))[b"id"] for f in outputs}) == len(handled), (
            "ids of outputs are distinct"
        )

    def close(self) -> None:
        """Ends every process; their last words are shown if the test failed."""
        for program in self.workers:
            program.kill()
        for number, program in enumerate(self.workers):
            sys.stdout.write(f"--- worker {number}: ended with {program.code}\n{program.log[-8_000:]}\n")

"""The processes under attack: each is started again when it ends, and an end that nobody asked for is written down."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import headrace
from headrace.embedded import guard
from headrace.testing.faults import Program

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = Path(headrace.__file__).parents[1]
_POLL_S: Final = 0.02
_RESTART_S: Final = 0.5
"""How long it takes at most until a dead one is started again."""

_REFUSED: Final = ("replicas is 0", "role is replica")
"""What a program that begins in the middle of a failover is told, as documented."""

WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "direct": ("faults.publish", "direct"),
    "named": ("faults.publish", "named"),
    "outbox": ("faults.publish", "outbox"),
    "relay": ("headrace", "relay", "faults.apps:relay.app"),
    "shared": ("headrace", "run", "faults.apps:shared.app"),
    "ordered": ("headrace", "run", "faults.apps:ordered.app"),
    "sql": ("headrace", "run", "faults.apps:sql.app"),
}
PUBLISHERS: Final = ("direct", "named", "outbox")
WORKERS: Final = ("shared", "ordered", "sql")


def bound(*words: str) -> list[str]:
    """The command as one that the kernel ends with us."""
    return [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), "", *words]


class Member:
    """One place in the crew: a process, and its successors."""

    def __init__(self, role: str, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Nothing runs yet. `environment`: beyond ours."""
        self.role, self.name = role, name
        self.misdeed = folder / f"misdeed.{name}"
        self.sources = SOURCES
        """Of the release that the next life runs."""
        self.wanted = True
        self.lives = 0
        self.expected = False
        """Whether the end of this life has been asked for."""
        self._log = folder / f"{name}.log"
        self._environment = {**environment, "FAULTS_MISDEED": str(self.misdeed)}
        self._program: Program | None = None

    def start(self) -> None:
        """A new life."""
        words = bound(sys.executable, "-m", *WORDS[self.role])
        if self.role in PUBLISHERS:
            words.append(self.name)
        path = os.pathsep.join((str(self.sources), str(ROOT)))
        self._program = Program(words, self._log, cwd=ROOT, env={**self._environment, "PYTHONPATH": path})
        self.lives += 1
        self.expected = False

    @property
    def running(self) -> bool:
        """Paused or not."""
        return self._program is not None and self._program.code is None

    @property
    def code(self) -> int | None:
        """Of the last life."""
        return None if self._program is None else self._program.code

    @property
    def pid(self) -> int:
        """Of this life."""
        return 0 if self._program is None else self._program.pid

    @property
    def last_words(self) -> str:
        """The end of its log."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return " / ".join(text[-2_000:].splitlines()[-3:])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to this life; one that ends it is an end that was asked for."""
        if self._program is not None and self.running:
            self.expected |= number in (signal.SIGKILL, signal.SIGTERM)
            self._program.send(number)

    def misbehave(self, word: str) -> None:
        """Its handlers do this from now on."""
        self.misdeed.write_text(word)
        self.send(signal.SIGUSR1)


class Crew:
    """All of them. A task starts again what ended."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Empty; `tell` writes a line into the round's log."""
        self.members: list[Member] = []
        self.ended: list[str] = []
        """Ends that nobody asked for."""
        self.lenient = False
        """While it is right that workers end by themselves: their group was destroyed."""
        self._tell = tell

    def of(self, *roles: str) -> list[Member]:
        """Those in these roles."""
        return [m for m in self.members if m.role in roles]

    async def watch(self) -> None:
        """For ever: what ended is started again after a moment."""
        due: dict[Member, float] = {}
        loop = asyncio.get_running_loop()
        while True:
            for member in self.members:
                if member.running or not member.wanted:
                    due.pop(member, None)
                elif member not in due:
                    due[member] = loop.time() + random.random() * _RESTART_S
                    self._note(member)
                elif loop.time() >= due[member]:
                    member.start()
            await asyncio.sleep(_POLL_S)

    def _note(self, member: Member) -> None:
        if member.expected or not member.lives or self.lenient or member.code == -signal.SIGUSR1:
            return
        last = member.last_words.rpartition(" / headrace: ")[2]
        if member.code == 2 and any(reason in last for reason in _REFUSED):
            return
        self._tell(f"{member.name} ended by itself with {member.code}")
        self.ended.append(f"{member.name} ended by itself with {member.code}: {member.last_words}")

    async def dismiss(self, members: list[Member], wait_s: float) -> None:
        """SIGTERM; whoever has not ended in order by then is written down and killed."""
        for member in members:
            member.wanted = False
            member.send(signal.SIGCONT)
            member.send(signal.SIGTERM)
        end = asyncio.get_running_loop().time() + wait_s
        while any(m.running for m in members) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_S)
        for member in members:
            if member.running:
                self.ended.append(f"{member.name} did not end within {wait_s:.0f} s of SIGTERM: {member.last_words}")
            elif member.code not in (0, -signal.SIGTERM, -signal.SIGKILL):  # -SIGTERM: it had not begun
                self.ended.append(f"{member.name} ended with {member.code}: {member.last_words}")
            member.send(signal.SIGKILL)

    def kill(self) -> None:
        """All of them, now."""
        for member in self.members:
            member.wanted = False
            member.send(signal.SIGKILL)

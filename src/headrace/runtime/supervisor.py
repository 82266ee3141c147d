"""Several worker processes under one command. A child that dies is replaced; children do not outlive their parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from headrace import limits
from headrace.runtime.signals import END_NOW

log = logging.getLogger("headrace")
_REFUSED = 4
_WRONG = 2
_STEADY_S = 10.0
"""A child that lived this long is replaced at once; one that died sooner after a pause that doubles."""


class _Child:
    """One worker process and the pipe through which it is told to end now, and whose end tells it that its parent is gone."""

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = os.pipe()
        self.pipe = theirs
        self.started = time.monotonic()
        self.process = subprocess.Popen([*command, "--parent-pipe", str(ours)], pass_fds=(ours,))  # noqa: S603 - our own command line
        os.close(ours)

    def reap(self) -> int | None:
        """The exit code once it is dead."""
        code = self.process.poll()
        if code is not None and self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        return code

    def ask(self) -> None:
        """To stop gracefully: once, however often it is said and by whom."""
        if self.reap() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Cuts off what its handlers are at work on."""
        if self.reap() is None:
            with contextlib.suppress(BrokenPipeError):  # it has just ended
                os.write(self.pipe, END_NOW)


def supervise(target: str, workers: int, arguments: Sequence[str] = ()) -> int:
    """Keeps `workers` processes of `headrace run TARGET` alive until SIGTERM or SIGINT; returns the exit code.

    A child that is refused by the server or wrongly configured (exit codes 4 and 2) ends all of them: a new one would fare the same.
    """
    command = [sys.executable, "-m", "headrace", "run", target, "--workers", "1", *arguments]
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    previous = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
    children = [_Child(command) for _ in range(workers)]
    pauses, again_at = [0.0] * workers, [0.0] * workers
    try:
        while not asked:
            time.sleep(0.1)
            for i, child in enumerate(children):
                code = child.reap()
                if code is None or asked:
                    continue
                if code in (_REFUSED, _WRONG):
                    return code
                if not again_at[i]:
                    steady = time.monotonic() - child.started > _STEADY_S
                    pauses[i] = 0.0 if steady else min(max(pauses[i] * 2, limits.retry_first_s), 10.0)
                    again_at[i] = time.monotonic() + pauses[i]
                    log.warning("worker process %d ended with %s; starting another", child.process.pid, _said(code))
                if time.monotonic() >= again_at[i]:
                    again_at[i] = 0.0
                    children[i] = _Child(command)
        return 0
    finally:
        _stop(children, asked)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _said(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _stop(children: Sequence[_Child], asked: list[int]) -> None:
    """Asks all to stop; a second signal ends them, and the end of patience kills them."""
    for child in children:
        child.ask()
    end_s = limits.leave_s + 3 * limits.abandon_s  # cut off its handlers, hand back, cancel what they left, end
    kill_at = time.monotonic() + limits.stop_s + end_s
    hurried = False
    while any(child.reap() is None for child in children):
        if not hurried and len(asked) > 1:
            hurried = True
            kill_at = time.monotonic() + end_s
            for child in children:
                child.end()
        if time.monotonic() > kill_at:
            for child in children:
                child.process.kill()
        time.sleep(0.05)

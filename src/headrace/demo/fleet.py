"""The worker processes of a run: started, killed, replaced, and gone at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from headrace.errors import Refused

_STOP_S: Final = 5.0
_LOST_MAX: Final = 10
"""Workers that may end by themselves before the run is given up."""
_FOR_GOOD: Final = (2, 4, 70)
"""Exit codes of `headrace run` that a new process would end with as well."""


class Worker(NamedTuple):
    """One `headrace run` process."""

    process: subprocess.Popen[bytes]
    pipe: int
    """Our end of its parent pipe: it stops when we are gone, however we went."""


class Fleet:
    """Keeps `size` workers of one app running. What they log goes to a file."""

    def __init__(self, target: str, size: int, log: Path) -> None:
        """Starts nothing yet. They find their server and topics as we do, in the environment."""
        self._command = [sys.executable, "-m", "headrace", "run", target, "--parent-pipe"]
        self._size = size
        self._log = log
        self._workers: list[Worker] = []
        self.lost: list[str] = []
        """Workers that ended by themselves, each as a sentence."""

    def fill(self) -> None:
        """Starts what is missing, the first ones included. Raises Refused when workers end by themselves again and again."""
        for worker in list(self._workers):
            code = worker.process.poll()
            if code is not None:
                self._forget(worker)
                self.lost.append(f"worker {worker.process.pid} ended by itself with {code}")
                if code in _FOR_GOOD or len(self.lost) > _LOST_MAX:
                    raise Refused(f"{self.lost[-1]}; its last words are in {self._log}")
        while len(self._workers) < self._size:
            self._workers.append(self._start())

    def _start(self) -> Worker:
        theirs, ours = os.pipe()
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603 - our own command line
                    [*self._command, str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs,),
                    process_group=0,  # Ctrl-C is for us; we end them
                )
        finally:
            os.close(theirs)
        return Worker(process, ours)

    @property
    def pids(self) -> list[int]:
        """Those that are kept running."""
        return [worker.process.pid for worker in self._workers]

    def kill(self, pid: int) -> None:
        """SIGKILL: returns when it is dead. `fill` starts another."""
        worker = next(w for w in self._workers if w.process.pid == pid)
        worker.process.kill()
        worker.process.wait()
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        self._workers.remove(worker)
        os.close(worker.pipe)

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that do not end in time. None is left when it returns."""
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + _STOP_S
        for worker in list(self._workers):
            try:
                worker.process.wait(max(until - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._forget(worker)

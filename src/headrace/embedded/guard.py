"""Becomes a server that does not outlive the program that asked for it.

Run as `python guard.py PARENT PRELOAD PROGRAM ARGUMENT...` by `node.py`: by path, so that it loads the standard library
alone. On Linux the kernel is asked to send SIGKILL when the thread that started this process ends, which holds over exec
and reaches a paused server too. PARENT is the process id to be bound to; PRELOAD is for LD_PRELOAD, or empty.
A program of its own, because what runs between fork and exec in a program with threads must not be Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1


def main(words: list[str]) -> NoReturn:
    """Becomes the server, or ends with 1 if the parent is gone already. Raises OSError."""
    parent, preload, *command = words
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the kernel knew
        sys.exit(1)
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the program may have blocked what a server lives by
    environment = {**os.environ, "LD_PRELOAD": preload} if preload else dict(os.environ)
    os.execve(command[0], command, environment)  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])

"""A disk that is slow, full or forgets, and clocks that are wrong: builds shim.c and turns its knobs."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).parent / "shim.c"
_KNOBS: Final = struct.Struct("3q")
_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


def build(folder: Path) -> Path | None:
    """The shim as a shared object; None if there is no C compiler. Raises CalledProcessError with the compiler's words."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    target = folder / "shim.so"
    words = [compiler, "-shared", "-fPIC", "-O2", "-o", str(target), str(_SOURCE), "-ldl"]
    subprocess.run(words, check=True, capture_output=True, text=True)
    return target


class Knobs:
    """What the processes that share one control file believe of their disk and clock."""

    def __init__(self, path: Path) -> None:
        """Everything is as it is."""
        self.path = path
        self._fsync_us = self._full = self._clock_us = 0
        path.write_bytes(bytes(_KNOBS.size))

    def slow(self, seconds: float) -> None:
        """Every fsync takes so much longer."""
        self._fsync_us = int(seconds * 1e6)
        self._write()

    def full(self, *, full: bool) -> None:
        """Whether the disk takes no more bytes."""
        self._full = int(full)
        self._write()

    def clock(self, seconds: float) -> None:
        """How far the wall clock is ahead; it is behind if negative."""
        self._clock_us = int(seconds * 1e6)
        self._write()

    def _write(self) -> None:
        with self.path.open("r+b") as file:
            file.write(_KNOBS.pack(self._fsync_us, self._full, self._clock_us))


def lose(data: Path, durable: Path, torn: random.Random | None) -> int:
    """Cuts each append-only file below `data` back to what an fsync had brought to the disk: a power loss at its worst.

    `torn`: a part of the rest stays, and ends in the middle of a transaction if there is one. Returns how many bytes are gone. The server must
    be dead.
    """
    gone = 0
    for path in data.glob("appendonlydir/*.incr.aof"):
        found = path.stat()
        note = durable / str(found.st_ino)
        safe = min(int.from_bytes(note.read_bytes(), "little"), found.st_size) if note.exists() else 0
        with path.open("r+b") as file:
            file.seek(safe)
            kept = 0 if torn is None else _half(file.read(), torn)
            file.truncate(safe + kept)
        gone += found.st_size - safe - kept
    return gone


def _half(written: bytes, chance: random.Random) -> int:
    """How much of it stays."""
    inside: list[range] = []
    end = 0
    while (begin := written.find(_MULTI, end)) >= 0:
        end = written.find(_EXEC, begin)
        end = len(written) if end < 0 else end
        inside.append(range(begin + len(_MULTI), end))
    return chance.choice(chance.choice(inside)) if inside else chance.randrange(len(written) + 1)

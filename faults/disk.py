"""A disk that is slow, full or forgets, and clocks that are wrong: builds shim.c and turns its knobs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).parent / "shim.c"
_KNOBS: Final = struct.Struct("3q")


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


def lose(data: Path, durable: Path, *, keep: float) -> int:
    """Cuts each append-only file below `data` back to what an fsync had brought to the disk, but for the share `keep` of the rest.

    0 is a power loss at its worst, between 0 and 1 leaves a torn tail. Returns how many bytes are gone. The server must be dead.
    """
    gone = 0
    for path in data.glob("appendonlydir/*.incr.aof"):
        found = path.stat()
        note = durable / str(found.st_ino)
        safe = min(int.from_bytes(note.read_bytes(), "little"), found.st_size) if note.exists() else 0
        size = safe + int((found.st_size - safe) * keep)
        gone += found.st_size - size
        with path.open("r+b") as file:
            file.truncate(size)
    return gone

"""Our stdout and stderr: closed, left by their reader, or of a small alphabet, they change neither what is done nor the exit code."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ESCAPES: Final = "headrace.escapes"
"""Name of an error handler of Python's codecs."""


def prepare() -> None:
    """Before anything is written: a stream that is closed loses what is written to it, and every character can be."""
    codecs.register_error(_ESCAPES, _escaped)
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=_ESCAPES)


def _nowhere() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", errors="backslashreplace")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""What the encoding of stdout lacks, as `\u2026`: people can read that, and so can JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)), error.end


def tell(text: str) -> None:
    """Writes a line to stderr, if anybody reads it."""
    try:
        sys.stderr.write(text + "\n")
    except BrokenPipeError:  # what is told is no part of the answer, and the exit code says how it ended
        let_go()


@contextmanager
def answer() -> Iterator[None]:
    """Around the printing of an answer that the exit code gives, too: it is given although nobody reads on."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # as above
        let_go()


def let_go() -> None:
    """Gives up a stream whose reader has left, or the interpreter would fail to write what is left when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:  # whoever wrote it has been told, or is told now by the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

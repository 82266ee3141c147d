"""What commands print: tables for people, JSON for scripts, progress on a terminal."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from headrace import settings
from headrace.cli import streams
from headrace.embedded import server

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_EVERY_S: Final = 0.2
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400

Cell = str | int


def line(text: str) -> None:
    """One line of the answer."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A remark for people, which is no part of the answer."""
    streams.tell(text)


def no(what: str, url: str | None, hint: str) -> None:
    """A remark that there is none of something yet on the server of `--url`, with its name: another one may have been meant."""
    chosen = settings.load(url).url
    name = settings.redacted(chosen) if chosen else f"the embedded server in {server.default_directory()}"
    note(f"no {what} yet on {name}: {hint}")


def json(value: Any) -> None:
    """A value as indented JSON: structs become objects with the names of their fields, quantities plain numbers."""
    line(msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2).decode())


def _plain(value: Any) -> Any:
    """Of a kind of number; the library calls it for what it cannot encode by itself."""
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    raise NotImplementedError


def json_line(value: Any) -> None:
    """A value as one line of JSON, visible at once to whoever reads along."""
    line(msgspec.json.encode(value).decode())
    sys.stdout.flush()


def deserted() -> bool:
    """Whether nobody reads our output any more: a follower must notice even while it has nothing to print."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except OSError:  # not a file, as in tests
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def fields(struct: msgspec.Struct, *properties: str) -> dict[str, Any]:
    """A struct's fields by name, and the named properties behind them."""
    return {**msgspec.structs.asdict(struct), **{name: getattr(struct, name) for name in properties}}


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Rows under their column names. Numbers go right; on a terminal they have thousands separators and the names are bold."""
    terminal = sys.stdout.isatty()
    cells = list(rows)
    texts = [[f"{c:,}" if terminal and isinstance(c, int) else str(c) for c in row] for row in cells]
    widths = [max(len(name), *(len(row[i]) for row in texts)) if texts else len(name) for i, name in enumerate(columns)]
    right = [any(isinstance(row[i], int) for row in cells) for i in range(len(columns))]

    def laid(row: Sequence[str]) -> str:
        return "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(row, widths, right, strict=True)).rstrip()

    head = laid(columns)
    line(f"{_BOLD}{head}{_PLAIN}" if terminal else head)
    for row in texts:
        line(laid(row))


def number(value: int) -> str:
    """A number inside a sentence."""
    return f"{value:,}"


def plural(value: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{value:,} {noun}" + ("" if value == 1 else "s")


def duration(seconds: float) -> str:
    """A length of time as people say it: its two largest units."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f}s"
    s = int(seconds)
    if s < _HOUR_S:
        return f"{s // _MINUTE_S}m {s % _MINUTE_S}s"
    if s < _DAY_S:
        return f"{s // _HOUR_S}h {s % _HOUR_S // _MINUTE_S}m"
    return f"{s // _DAY_S}d {s % _DAY_S // _HOUR_S}h"


def size(amount: int) -> str:
    """A number of bytes as people say it."""
    value, unit = float(amount), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1_024:  # noqa: PLR2004 - the factor between the units
            break
        value, unit = value / 1_024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def printable(text: str) -> str:
    """Text of unknown origin without what would move the cursor or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Line:
    """One line on the terminal's stderr that is rewritten; silent elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._width = 0

    def write(self, text: str) -> None:
        if self.live:
            shown, self._width = (
                text.ljust(self._width),
                len(text),
            )  # first: an interrupt may come as soon as it is written
            sys.stderr.write("\r" + shown)
            sys.stderr.flush()

    def clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


class Progress:
    """How much is done, on one line of the terminal while work goes on."""

    def __init__(self, verb: str) -> None:
        """`verb` in the past tense: what was done to the events counted."""
        self._verb = verb
        self._line = _Line()
        self._started = self._shown = time.monotonic()

    def show(self, done: int, detail: str = "") -> None:
        """How much is done now; rewrites the line a few times a second."""
        now = time.monotonic()
        if not self._line.live or now - self._shown < _EVERY_S:
            return
        self._shown = now
        self._line.write(
            f"{self._verb} {done:,}, {done / (now - self._started):,.0f}/s{', ' + detail if detail else ''}"
        )

    def end(self) -> float:
        """Clears the line; returns the seconds since the start."""
        self._line.clear()
        return time.monotonic() - self._started


class Stage:
    """What goes on, on one line of the terminal."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._line = _Line()

    def show(self, text: str) -> None:
        """Replaces the line."""
        self._line.write(f"{text} ...")

    def end(self) -> None:
        """Clears the line."""
        self._line.clear()

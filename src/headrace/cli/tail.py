"""`headrace tail`: the last events of a topic, or dead letters of a group, and the new ones as they come."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from headrace import limits
from headrace.backends.contract import Inspector, Letter
from headrace.cli import letters, moments, output
from headrace.cli.command import Command, add_server, add_topic, count, group_name
from headrace.cli.exits import OK
from headrace.cli.server import inspect
from headrace.errors import ConfigurationError, NotConnected

_LAST: Final = 10
_POLL_S: Final = 0.2
_OUTAGE_S: Final = 1.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    parser.add_argument("--dead", action="store_true", help="dead letters of --group instead of the topic's events")
    parser.add_argument("--group", metavar="GROUP", type=group_name, help="the group whose dead letters are meant")
    parser.add_argument(
        "--from",
        metavar="MOMENT",
        dest="first",
        help="- (the first event), 2026-11-23T10:00:00+01:00, -2h, or a stream id",
    )
    parser.add_argument("--count", metavar="N", type=count, help="the last N (10); with --from, the first N from there")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with new ones until interrupted")
    add_server(parser)


def _tail(args: argparse.Namespace) -> int:
    if args.dead != bool(args.group):
        raise ConfigurationError("--dead and --group belong together: `headrace tail TOPIC --dead --group GROUP`")
    if args.first is not None and args.first != "-":
        args.first = moments.before(moments.first(args.first))
    return inspect(args, lambda inspector: _Tail(inspector, args).run())


class _Place:
    """A stream that is read: a topic, a partition, or the dead letters of a group there."""

    def __init__(self, inspector: Inspector, name: str, group: str | None, after: str) -> None:
        """`group`: whose dead letters are meant."""
        self._inspector, self.name, self._group = inspector, name, group
        self.after = after
        """What was read last; new ones come behind it."""

    async def read(self, after: str, n: int) -> Sequence[Letter]:
        """At most `n` letters after a token."""
        if self._group:
            return await self._inspector.dead(self.name, self._group, after, n)
        return await self._inspector.read(self.name, after, n)

    async def bounds(self) -> tuple[moments.Place, int]:
        """Where what is there now ends, and how many of it there are: the one is known of a topic, the other of dead letters.

        Without it, reading a topic that is written to as fast as it is read would never end.
        """
        if self._group:
            groups = await self._inspector.groups(self.name)
            return (sys.maxsize, 0), sum(g.dead for g in groups if g.group == self._group)
        [last] = await self._inspector.read(self.name, "$", 1)
        return moments.place(last.token), sys.maxsize

    async def there(self, after: str, bounds: tuple[moments.Place, int], size: int) -> AsyncIterator[Sequence[Letter]]:
        """Pages of `size` after a token, within these bounds."""
        end, most = bounds
        async for page in letters.pages(self.read, after, size):
            there = [letter for letter in page[:most] if moments.place(letter.token) <= end]
            yield there
            if len(there) < len(page):
                return
            most -= len(page)

    async def newest(self, wanted: int) -> Sequence[Letter]:
        """The last `wanted` letters of those that are there now."""
        bounds = await self.bounds()
        after = "-" if self._group else await self._window(bounds[0], wanted)
        last: deque[Letter] = deque(maxlen=wanted)
        async for page in self.there(after, bounds, limits.batch_records_max):
            last.extend(page)
        if last:
            self.after = last[-1].token
        return last

    async def _window(self, end: moments.Place, wanted: int) -> str:
        """The token to read after. A topic is read forwards, so the window before its end widens until it holds enough."""
        last_ms, window_ms = end[0], 1
        while window_ms < last_ms:
            start = moments.before(f"{last_ms - window_ms}-0")
            page = await self.read(start, wanted)
            if len(page) >= wanted and moments.place(page[-1].token) <= end:
                return start
            window_ms *= 10
        return "-"


_Found = tuple[_Place, Letter]


def _by_time(found: Iterable[_Found]) -> list[_Found]:
    return sorted(found, key=lambda each: moments.place(each[1].token))


class _Tail:
    """One run of the command."""

    def __init__(self, inspector: Inspector, args: argparse.Namespace) -> None:
        self._inspector = inspector
        self._args = args
        self._places: list[_Place] = []
        self._widths = [0, 0, 0]

    async def run(self) -> int:
        """Prints what was asked for; returns the exit code."""
        args = self._args
        names = await letters.places(self._inspector, args.topic, args.group)
        self._places = [_Place(self._inspector, name, args.group, args.first or "-") for name in names]
        if args.first is None:
            self._show(await self._newest(args.count or _LAST))
            left = None
        else:
            left = args.count
            async for page in self._there():
                left = self._show(page, left)
                if left == 0:
                    return OK
        if args.follow:
            async for page in self._new():
                left = self._show(page, left)
                if left == 0:
                    break
        return OK

    async def _newest(self, wanted: int) -> Sequence[_Found]:
        """The last `wanted` letters of all places."""
        last: list[_Found] = []
        for place in self._places:
            last += [(place, letter) for letter in await place.newest(wanted)]
            last = _by_time(last)[-wanted:]
        return last

    async def _there(self) -> AsyncIterator[Sequence[_Found]]:
        """What is there now from where it is to begin."""
        size = self._size()
        sources = [place.there(place.after, await place.bounds(), size) for place in self._places]
        page: list[_Found] = []
        async for n, letter in letters.merged(sources):
            self._places[n].after = letter.token
            page.append((self._places[n], letter))
            if len(page) == limits.batch_records_max:
                yield page
                page = []
        yield page

    def _size(self) -> int:
        """How many letters of each place are held at once: however many places there are, together no more than of one."""
        return max(limits.batch_records_max // len(self._places), 1)

    async def _new(self) -> AsyncIterator[Sequence[_Found]]:
        """Letters as they come, until nobody reads our output any more. Survives a server that goes away for a while."""
        out = False
        while True:
            try:
                pages = [await place.read(place.after, self._size()) for place in self._places]
            except NotConnected as e:
                if not out:
                    output.note(f"headrace: {e}")
                out = True
                await asyncio.sleep(_OUTAGE_S)
                continue
            if out:
                output.note("headrace: going on")
                out = False
            found = [(place, letter) for place, page in zip(self._places, pages, strict=True) for letter in page]
            for place, letter in found:
                place.after = letter.token
            if found:
                yield _by_time(found)
            elif output.deserted():
                return
            else:
                await asyncio.sleep(_POLL_S)

    def _show(self, found: Sequence[_Found], left: int | None = None) -> int | None:
        """Prints letters, at most `left` of them; returns how many are left."""
        for place, letter in found[:left]:
            if self._args.json:
                output.json_line(letters.machine(letter, place.name if place.name != self._args.topic else ""))
            else:
                self._line(letter)
        sys.stdout.flush()
        return None if left is None else max(left - len(found), 0)

    def _line(self, letter: Letter) -> None:
        time, *words, data = letters.row(letter)
        self._widths = [max(w, len(word)) for w, word in zip(self._widths, words, strict=True)]
        laid = (word.ljust(w) for w, word in zip(self._widths, words, strict=True))
        reason = (f"[{output.printable(letter.reason)}]",) if letter.reason else ()
        output.line("  ".join((time, *laid, *reason, data)))


COMMANDS = {"tail": Command(_arguments, _tail)}

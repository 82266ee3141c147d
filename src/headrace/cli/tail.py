"""`headrace tail`: the last events of a topic, or dead letters of a group, and the new ones as they come."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
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


class _Tail:
    """One run of the command."""

    def __init__(self, inspector: Inspector, args: argparse.Namespace) -> None:
        self._inspector = inspector
        self._args = args
        self._after = "-"
        self._widths = [0, 0, 0]

    async def run(self) -> int:
        """Prints what was asked for; returns the exit code."""
        args = self._args
        if args.first is None:
            await self._show(await self._newest(args.count or _LAST))
            left = None
        else:
            self._after = args.first
            left = args.count
            async for page in self._there(args.first, *await self._bounds()):
                left = await self._show(page, left)
                if left == 0:
                    return OK
        if args.follow:
            async for page in self._new():
                left = await self._show(page, left)
                if left == 0:
                    break
        return OK

    async def _read(self, after: str, n: int) -> Sequence[Letter]:
        if self._args.dead:
            return await self._inspector.dead(self._args.topic, self._args.group, after, n)
        return await self._inspector.read(self._args.topic, after, n)

    async def _bounds(self) -> tuple[moments.Place, int]:
        """Where what is there now ends, and how many of it there are: the one is known of a topic, the other of dead letters.

        Without it, reading a topic that is written to as fast as it is read would never end.
        """
        args = self._args
        if args.dead:
            groups = await self._inspector.groups(args.topic)
            return (sys.maxsize, 0), sum(g.dead for g in groups if g.group == args.group)
        [last] = await self._inspector.read(args.topic, "$", 1)
        return moments.place(last.token), sys.maxsize

    async def _there(self, after: str, end: moments.Place, most: int) -> AsyncIterator[Sequence[Letter]]:
        """Pages after a token, within these bounds."""
        async for page in letters.pages(self._read, after):
            there = [letter for letter in page[:most] if moments.place(letter.token) <= end]
            yield there
            if len(there) < len(page):
                return
            most -= len(page)

    async def _newest(self, wanted: int) -> Sequence[Letter]:
        """The last `wanted` letters of those that are there now."""
        end, most = await self._bounds()
        after = "-" if self._args.dead else await self._window(end, wanted)
        last: deque[Letter] = deque(maxlen=wanted)
        async for page in self._there(after, end, most):
            last.extend(page)
        return last

    async def _window(self, end: moments.Place, wanted: int) -> str:
        """The token to read after. A topic is read forwards, so the window before its end widens until it holds enough."""
        last_ms, window_ms = end[0], 1
        while window_ms < last_ms:
            start = moments.before(f"{last_ms - window_ms}-0")
            page = await self._read(start, wanted)
            if len(page) >= wanted and moments.place(page[-1].token) <= end:
                return start
            window_ms *= 10
        return "-"

    async def _new(self) -> AsyncIterator[Sequence[Letter]]:
        """Pages as they come, until nobody reads our output any more. Survives a server that goes away for a while."""
        out = False
        while True:
            try:
                page = await self._read(self._after, limits.batch_records_max)
            except NotConnected as e:
                if not out:
                    output.note(f"headrace: {e}")
                out = True
                await asyncio.sleep(_OUTAGE_S)
                continue
            if out:
                output.note("headrace: going on")
                out = False
            if page:
                yield page
            elif output.deserted():
                return
            else:
                await asyncio.sleep(_POLL_S)

    async def _show(self, page: Sequence[Letter], left: int | None = None) -> int | None:
        """Prints a page, at most `left` of it; returns how many are left."""
        for letter in list(page)[:left]:
            self._after = letter.token
            if self._args.json:
                output.json_line(letters.machine(letter))
            else:
                self._line(letter)
        sys.stdout.flush()
        return None if left is None else max(left - len(page), 0)

    def _line(self, letter: Letter) -> None:
        time, *words, data = letters.row(letter)
        self._widths = [max(w, len(word)) for w, word in zip(self._widths, words, strict=True)]
        laid = (word.ljust(w) for w, word in zip(self._widths, words, strict=True))
        reason = (f"[{output.printable(letter.reason)}]",) if letter.reason else ()
        output.line("  ".join((time, *laid, *reason, data)))


COMMANDS = {"tail": Command(_arguments, _tail)}

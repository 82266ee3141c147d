"""`headrace replay`: gives a range of a topic's retained events to one group again, beside live traffic."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NamedTuple

from headrace.backends.contract import Inspector
from headrace.cli import letters, moments, output
from headrace.cli.command import Command, add_group, add_server, add_topic
from headrace.cli.exits import OK
from headrace.cli.server import inspect
from headrace.errors import ConfigurationError, Refused

_STEP: Final = 100
"""Events per call: a call that fails may have copied them or not, so it is the inspector's smallest step."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    add_group(parser)
    moment = "2026-11-23T10:00:00+01:00, -2h, now, or a stream id"
    parser.add_argument("--from", metavar="MOMENT", dest="first", required=True, help=f"first event: {moment}")
    parser.add_argument("--to", metavar="MOMENT", dest="last", required=True, help=f"last event: {moment}")
    add_server(parser)


def _replay(args: argparse.Namespace) -> int:
    first, last = moments.first(args.first), moments.last(args.last)
    if moments.place(first) > moments.place(last):
        raise ConfigurationError(f"range: --from {args.first} is later than --to {args.last}")

    async def work(inspector: Inspector) -> int:
        # Also because a server that is away says so before anything can have been copied.
        where = await letters.places(inspector, args.topic, args.group)
        for bound in (args.first, args.last):
            if len(where) > 1 and moments.is_id(bound):
                raise ConfigurationError(
                    f"{bound} is the id of an event of one partition: name that, {where[0]} to {where[-1]}, or give times"
                )
        progress = output.Progress("replayed")
        copied = 0
        for n, place in enumerate(where):
            copied = await _copy(inspector, args, _Range(place, first, last, where[n + 1 :]), progress, copied)
        seconds = progress.end()
        if args.json:
            output.json({"topic": args.topic, "group": args.group, "first": first, "last": last, "replayed": copied})
        else:
            output.line(
                f"replayed {output.plural(copied, 'event')} of {args.topic} to group {args.group} in {output.duration(seconds)}"
            )
        return OK

    return inspect(args, work)


class _Range(NamedTuple):
    """What is copied of one place."""

    place: str
    first: str
    last: str
    others: Sequence[str]
    """The places whose turn comes after this one."""


async def _copy(
    inspector: Inspector, args: argparse.Namespace, range_: _Range, progress: output.Progress, copied: int
) -> int:
    """Copies a range; how many that makes with the `copied` before. If it is cut off, says how to go on."""
    begin = range_.first
    try:
        while begin:
            count, begin = await inspector.replay(range_.place, args.group, begin, range_.last, _STEP)
            copied += count
            progress.show(copied, f"up to {moments.said(moments.token_ms(begin))}" if begin else "")
    except BaseException as e:
        progress.end()
        if copied or not isinstance(e, Refused):  # what is refused at once has copied nothing
            done = f"replayed {output.plural(copied, 'event')} before it ended; to go on"
            some = f"(of the next {_STEP}, some may have been copied already)"
            if range_.place == args.topic:
                output.note(f"{done}: --from {begin} {some}")
            else:
                _say_what_is_left(args, range_, begin, f"{done} {some}")
        raise
    return copied


def _say_what_is_left(args: argparse.Namespace, range_: _Range, begin: str, done: str) -> None:
    """The commands that copy the rest of this partition, and the others: with the range as it was, since `now` has moved."""
    left = [(range_.place, begin), *((place, range_.first) for place in range_.others)]
    commands = (f"headrace replay {place} {args.group} --from {first} --to {range_.last}" for place, first in left)
    output.note("\n".join((f"{done}:", *commands)))


COMMANDS = {"replay": Command(_arguments, _replay)}

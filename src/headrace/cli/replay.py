"""`headrace replay`: gives a range of a topic's retained events to one group again, beside live traffic."""

from __future__ import annotations

import argparse
from typing import Final

from headrace.backends.contract import Inspector
from headrace.cli import moments, output
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
        await inspector.read(args.topic, "$")  # a server that is away says so before anything can have been copied
        progress = output.Progress("replayed")
        copied, place = 0, first
        try:
            while place:
                count, place = await inspector.replay(args.topic, args.group, place, last, _STEP)
                copied += count
                progress.show(copied, f"up to {moments.said(moments.token_ms(place))}" if place else "")
        except BaseException as e:
            progress.end()
            if copied or not isinstance(e, Refused):  # what is refused at once has copied nothing
                done = f"replayed {output.plural(copied, 'event')} before it ended"
                output.note(
                    f"{done}; to go on: --from {place} (of the next {_STEP}, some may have been copied already)"
                )
            raise
        seconds = progress.end()
        if args.json:
            output.json({"topic": args.topic, "group": args.group, "first": first, "last": last, "replayed": copied})
        else:
            output.line(
                f"replayed {output.plural(copied, 'event')} of {args.topic} to group {args.group} in {output.duration(seconds)}"
            )
        return OK

    return inspect(args, work)


COMMANDS = {"replay": Command(_arguments, _replay)}

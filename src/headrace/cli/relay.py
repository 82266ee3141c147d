"""`headrace relay`: sends what an app's transactions have published."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from headrace.app import Headrace
from headrace.cli.command import Command
from headrace.cli.exits import OK
from headrace.cli.run import load_app
from headrace.errors import ConfigurationError
from headrace.runtime.signals import Stop, stopping
from headrace.runtime.worker import connect


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="TARGET", help="module:attribute of the app; the current directory is on the path"
    )


def _execute(args: argparse.Namespace) -> int:
    app = load_app(args.target)
    if app.outbox is None:
        raise ConfigurationError(f"{args.target} has no outbox: Headrace(outbox=Outbox(engine))")
    # As `headrace run` does: only where the app has not set up logging of its own.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if logging.getLogger("headrace").level == logging.NOTSET:
        logging.getLogger("headrace").setLevel(logging.INFO)
    asyncio.run(_relay(app))
    return OK


async def _relay(app: Headrace) -> None:
    """Until SIGTERM or SIGINT."""
    stop = Stop()
    with stopping(stop, None):
        await connect(app, stop)
        if stop.asked.is_set():
            await app.aclose()
            return
        async with app:
            relaying, asked = asyncio.ensure_future(app.relay()), asyncio.ensure_future(stop.asked.wait())
            await asyncio.wait([relaying, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if not relaying.done():
                relaying.cancel()
            ended = (await asyncio.gather(relaying, return_exceptions=True))[0]
    if isinstance(ended, Exception):
        raise ended


COMMANDS = {"relay": Command(_arguments, _execute)}

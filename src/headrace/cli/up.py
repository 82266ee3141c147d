"""`headrace up`: holds the embedded server of this project in the foreground."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from types import FrameType
from typing import Final

from headrace.cli import output
from headrace.cli.command import Command, add_json
from headrace.cli.exits import OK
from headrace.embedded import server
from headrace.embedded.server import EmbeddedServer
from headrace.errors import NotConnected

_LOOK_S: Final = 1.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def _up(args: argparse.Namespace) -> int:
    stop = threading.Event()

    def stopped(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    embedded = server.start()
    try:
        _print(embedded, as_json=args.json)
        while not stop.wait(_LOOK_S):
            embedded = _kept(embedded)
    finally:
        embedded.close()
    return OK


def _print(embedded: EmbeddedServer, *, as_json: bool) -> None:
    pid = embedded.pid()
    if as_json:
        output.json_line(
            {"url": embedded.url, "directory": str(embedded.directory), "server": embedded.version, "pid": pid}
        )
        return
    output.line(f"url: {embedded.url}")
    output.line(f"directory: {embedded.directory}")
    output.line(f"server: {embedded.version}, process {pid}")
    sys.stdout.flush()
    output.note(
        "Programs of this project find it by themselves. Ctrl-C ends this hold; the server stops when nobody else uses it."
    )


def _kept(embedded: EmbeddedServer) -> EmbeddedServer:
    """The hold, renewed if nothing answers any more. Raises NotConnected."""
    try:
        embedded.pid()
    except NotConnected as e:
        output.note(f"headrace: {e}")
        renewed = server.start()
        embedded.close()
        output.note(f"headrace: the server is back, process {renewed.pid()}")
        return renewed
    return embedded


COMMANDS = {"up": Command(_arguments, _up)}

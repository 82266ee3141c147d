"""`headrace up`: holds the embedded server of this project in the foreground, or runs a whole Cluster or Sentinel set-up."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from types import FrameType
from typing import Final, NoReturn

from headrace.cli import output
from headrace.cli.command import Command, add_json
from headrace.cli.exits import OK
from headrace.embedded import cluster, sentinel, server
from headrace.embedded.fleet import Fleet
from headrace.embedded.node import Node
from headrace.embedded.server import EmbeddedServer
from headrace.errors import ConfigurationError, NotConnected

_LOOK_S: Final = 1.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--cluster",
        metavar="N",
        type=int,
        help="a Cluster of N primaries (3 to 16) instead, as long as this command runs",
    )
    kind.add_argument(
        "--sentinel", action="store_true", help="a primary with replicas and three sentinels instead, likewise"
    )
    parser.add_argument(
        "--replicas", metavar="R", type=int, help="of each primary (default: 0 in a Cluster, 1 with sentinels)"
    )
    add_json(parser)


def _up(args: argparse.Namespace) -> int:
    if args.cluster is not None or args.sentinel:
        return _run_fleet(args)
    if args.replicas is not None:
        raise ConfigurationError("--replicas: goes with --cluster N or --sentinel; the embedded server is a single one")
    return _hold(args)


def _hold(args: argparse.Namespace) -> int:
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


def _run_fleet(args: argparse.Namespace) -> int:
    """Until SIGINT or SIGTERM, which end it in order at any moment."""

    def stopped(_signal: int, _frame: FrameType | None) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough: it stops within seconds
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    try:
        with _started(args) as fleet:
            _print_fleet(fleet, as_json=args.json)
            _watch(fleet)
    except KeyboardInterrupt:  # what was started is gone
        return OK


def _started(args: argparse.Namespace) -> Fleet:
    stage = output.Stage()
    try:
        if args.sentinel:
            replicas = 1 if args.replicas is None else args.replicas
            return sentinel.start(replicas=replicas, tell=stage.show)
        return cluster.start(primaries=args.cluster, replicas=args.replicas or 0, tell=stage.show)
    finally:
        stage.end()


def _print_fleet(fleet: Fleet, *, as_json: bool) -> None:
    nodes = [{"name": node.name, "role": node.role, "port": node.port, "pid": _pid(node)} for node in fleet.nodes]
    if as_json:
        output.json_line({"url": fleet.url, "directory": str(fleet.directory), "server": fleet.version, "nodes": nodes})
        return
    output.line(f"url: {fleet.url}")
    output.line(f"directory: {fleet.directory}")
    output.line(f"server: {fleet.version}")
    for node in nodes:
        output.line("{name}: {role}, 127.0.0.1:{port}, process {pid}".format(**node))
    sys.stdout.flush()
    output.note(
        f"Programs find it with\n    export HEADRACE_URL='{fleet.url}'\n"
        "Ctrl-C stops all of it; the data stays for the next time."
    )


def _watch(fleet: Fleet) -> NoReturn:
    """Says when a server died. The fleet starts it again by itself."""
    known = {node.name: _pid(node) for node in fleet.nodes}
    while True:
        time.sleep(_LOOK_S)
        for node in fleet.nodes:
            before, now = known[node.name], _pid(node)
            if now != before:
                output.note(
                    f"headrace: {node.name} died" + (f" and is back, process {now}" if now else "; it is started again")
                )
            known[node.name] = now


def _pid(node: Node) -> int:
    """Its process id; 0 while it is being started again."""
    try:
        return node.pid
    except NotConnected:  # it died a moment ago
        return 0


COMMANDS = {"up": Command(_arguments, _up)}

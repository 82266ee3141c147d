"""`headrace doctor`: what the server would forget of what it has acknowledged, and how to fix it."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from headrace import backends
from headrace.cli import output, streams
from headrace.cli.command import Command, add_server
from headrace.cli.exits import NO, OK
from headrace.cli.server import open_server

if TYPE_CHECKING:
    from headrace.backends.redis.durability import Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser)


def _doctor(args: argparse.Namespace) -> int:
    with open_server(args) as settings:
        report = asyncio.run(backends.doctor(settings))
    with streams.answer():
        if args.json:
            output.json(output.fields(report))
        else:
            _print(report)
    return NO if report.violations else OK


def _print(report: Report) -> None:
    output.line(f"server: {report.server} {report.version}, {report.mode}, {report.role}")
    output.line(f"url: {report.url}")
    output.line(f"level: {report.level.value}")
    output.line("")
    output.table(
        ("", "check", "found", "wanted"),
        (("ok" if f.ok else f.severity.upper(), f.name, f.found, f.wanted) for f in report.findings),
    )
    wrong = (*report.violations, *report.warnings)
    if wrong:
        output.line("")
        output.line("to fix:")
        for f in wrong:
            output.line(f"  {f.name}: {f.fix}")
    output.line("")
    if report.violations:
        violations = output.plural(len(report.violations), "violation")
        output.line(f"NOT SAFE at level {report.level.value}: {violations}; workers and publishers refuse to start.")
    else:
        output.line(f"Safe at level {report.level.value}. {report.loss_window}")


COMMANDS = {"doctor": Command(_arguments, _doctor)}

"""`headrace ledger`: where every published event stands for every group, and whether that adds up."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headrace.backends.contract import GroupInfo, Inspector
from headrace.cli import output, streams
from headrace.cli.command import Command, add_group, add_server, add_topic
from headrace.cli.exits import NO, OK
from headrace.cli.server import inspect
from headrace.errors import Refused

_COLUMNS = ("published", "replayed", "handled", "dead", "dropped", "pending", "unread", "delayed", "retrying")


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser, optional=True)
    add_group(parser, optional=True)
    add_server(parser)
    parser.epilog = (
        "It balances when published + replayed = handled + dead + dropped + pending + unread + delayed + retrying."
    )


def _ledger(args: argparse.Namespace) -> int:
    async def work(inspector: Inspector) -> int:
        groups = await inspector.groups(args.topic)
        if args.group is not None:
            known = ", ".join(g.group for g in groups) or "none"
            groups = [g for g in groups if g.group == args.group]
            if not groups:
                raise Refused(f"topic {args.topic} has no group {args.group}; its groups: {known}")
        with streams.answer():
            _print(args, groups)
        return NO if any(g.missing for g in groups) else OK

    return inspect(args, work)


def _print(args: argparse.Namespace, groups: Sequence[GroupInfo]) -> None:
    if args.json:
        output.json([output.fields(g, "missing") for g in groups])
        return
    if not groups:
        output.no("groups", args.url, "the ledger begins with the first subscription")
        return
    output.table(
        ("topic", "group", *_COLUMNS, "balance"),
        ((g.topic, g.group, *(getattr(g, c) for c in _COLUMNS), _balance(g.missing)) for g in groups),
    )
    for g in groups:
        if g.missing > 0:
            output.note(
                f"headrace: {output.plural(g.missing, 'event')} of {g.topic} never reached a known end in group {g.group}: entries were "
                "deleted or trimmed on the server by something other than headrace, or the server lost writes (see `headrace doctor`)"
            )
        elif g.missing < 0:
            output.note(
                f"headrace: group {g.group} of {g.topic} has settled {output.plural(-g.missing, 'event')} more than were published: "
                "entries were settled twice, or by something other than headrace"
            )


def _balance(missing: int) -> str:
    if missing == 0:
        return "exact"
    return f"{missing:,} missing" if missing > 0 else f"{-missing:,} too many"


COMMANDS = {"ledger": Command(_arguments, _ledger)}

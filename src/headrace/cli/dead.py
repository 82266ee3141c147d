"""`headrace dead`: the events that a group could not handle, and what becomes of them."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Sequence

from headrace import limits
from headrace.backends.contract import Inspector, Letter
from headrace.cli import letters, moments, output
from headrace.cli.command import Command, add_group, add_server, add_topic, confirm, count
from headrace.cli.exits import OK
from headrace.cli.server import inspect
from headrace.errors import ConfigurationError, Refused


def _arguments(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(metavar="list|show|replay|drop", dest="act", required=True)
    for act, purpose in (
        ("list", "print dead letters, oldest first"),
        ("show", "print dead letters in full"),
        ("replay", "give dead letters back to the group, as if they were new"),
        ("drop", "delete dead letters for good; the ledger counts them as dropped"),
    ):
        sub = acts.add_parser(act, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False)
        add_topic(sub)
        add_group(sub)
        if act == "list":
            sub.add_argument("--count", metavar="N", type=count, default=100, help="at most this many (100)")
        else:
            sub.add_argument("tokens", metavar="TOKEN", nargs="*", help="as printed by `headrace dead list`")
            sub.add_argument(
                "--all", action="store_true", help="every dead letter that is there now, of all partitions of TOPIC"
            )
        if act == "drop":
            sub.add_argument("--yes", action="store_true", help="confirm: there is no way back")
        add_server(sub)


def _dead(args: argparse.Namespace) -> int:
    if args.act == "list":
        return inspect(args, lambda inspector: _list(inspector, args))
    if bool(args.tokens) == args.all:
        raise ConfigurationError(f"dead {args.act}: expected tokens, as printed by `headrace dead list`, or --all")
    for token in args.tokens:
        moments.before(token)  # refuses what is no stream id
    if args.act == "show":
        return inspect(args, lambda inspector: _show(inspector, args))
    if args.act == "drop":
        what = "every dead letter" if args.all else output.plural(len(args.tokens), "dead letter")
        confirm(args, f"{what} of group {args.group} of {args.topic} would be deleted for good")
    return inspect(args, lambda inspector: _move(inspector, args))


async def _list(inspector: Inspector, args: argparse.Namespace) -> int:
    where = await letters.places(inspector, args.topic, args.group)
    step = max(min(args.count, limits.batch_records_max) // len(where), 1)
    sources = [_letters(inspector, place, args.group, step) for place in where]
    found: list[tuple[str, Letter]] = []  # each with its partition, if the command does not name that
    async for n, letter in letters.merged(sources):
        found.append((where[n] if where[n] != args.topic else "", letter))
        if len(found) == args.count:
            break
    if args.json:
        output.json([letters.machine(letter, partition) for partition, letter in found])
    elif found:
        whole = where == [args.topic]
        columns = ("token", "time", "id", "type", "attempt", "reason", "data")
        rows = ((*([] if whole else [partition]), *_row(letter)) for partition, letter in found)
        output.table(columns if whole else ("partition", *columns), rows)
        if not whole:
            partition, letter = found[0]
            example = f"`headrace dead show {partition} {args.group} {letter.token}`"
            output.note(f"a token is one of its partition, which is named with it: {example}")
    else:
        output.note(f"group {args.group} of {args.topic} has no dead letters")
    return OK


def _row(letter: Letter) -> tuple[str, ...]:
    time, id_, type_, _, data = letters.row(letter)
    attempt = output.printable(letter.attributes.get("attempt", "-"))
    return letter.token, time, id_, type_, attempt, output.printable(letter.reason), data


async def _show(inspector: Inspector, args: argparse.Namespace) -> int:
    shown = 0
    async for place, page in _chosen(inspector, args):
        partition = place if place != args.topic else ""
        for letter in page:
            if args.json:
                output.json_line(letters.machine(letter, partition))
            else:
                if shown:
                    output.line("")
                letters.full(letter, partition)
            shown += 1
    return OK


def _letters(
    inspector: Inspector, place: str, group: str, step: int = limits.batch_records_max
) -> AsyncIterator[Sequence[Letter]]:
    return letters.pages(lambda after, n: inspector.dead(place, group, after, n), "-", step)


async def _chosen(inspector: Inspector, args: argparse.Namespace) -> AsyncIterator[tuple[str, Sequence[Letter]]]:
    """The letters of the given tokens, or all of them, and where they are. Raises Refused when there is none of a given token."""
    for place in await letters.places(inspector, args.topic, args.group) if args.all else ():
        async for page in _letters(inspector, place, args.group):
            yield place, page
    for token in args.tokens:
        page = await inspector.dead(args.topic, args.group, moments.before(token), 1)
        if not page or page[0].token != token:
            raise Refused(
                f"group {args.group} of {args.topic} has no dead letter {token}: it was replayed or dropped, or never was"
            )
        yield args.topic, page


async def _move(inspector: Inspector, args: argparse.Namespace) -> int:
    act, verb = (inspector.dead_replay, "replayed") if args.act == "replay" else (inspector.dead_drop, "dropped")
    progress = output.Progress(verb)
    asked = moved = 0
    try:
        async for place, tokens in _batches(inspector, args):
            asked += len(tokens)
            moved += await act(place, args.group, tokens)
            progress.show(moved)
    finally:
        progress.end()
    if args.json:
        output.json({"topic": args.topic, "group": args.group, verb: moved, "absent": asked - moved})
    else:
        absent = f"; {output.number(asked - moved)} not there any more" if moved < asked else ""
        output.line(f"{verb} {output.plural(moved, 'dead letter')} of group {args.group} of {args.topic}{absent}")
    return OK


async def _batches(inspector: Inspector, args: argparse.Namespace) -> AsyncIterator[tuple[str, Sequence[str]]]:
    """Where letters are and which to move, as many at a time as one call takes.

    For --all: what is there at the start, and no more, or letters that die again at once would be replayed for ever.
    """
    step = limits.batch_records_max
    if not args.all:
        for start in range(0, len(args.tokens), step):
            yield args.topic, args.tokens[start : start + step]
        return
    where = await letters.places(inspector, args.topic, args.group)
    # How many there are is counted before the first is moved.
    there = [sum(g.dead for g in await inspector.groups(place) if g.group == args.group) for place in where]
    for place, left in zip(where, there, strict=True):
        async for page in _letters(inspector, place, args.group):
            if left <= 0:
                break
            yield place, [letter.token for letter in page[:left]]
            left -= len(page)  # noqa: PLW2901 - counts down


COMMANDS = {"dead": Command(_arguments, _dead)}

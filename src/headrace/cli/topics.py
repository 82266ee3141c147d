"""`headrace topics`, `headrace partitions`, `headrace groups` and `headrace pending`: what the server holds, and who holds it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from msgspec import structs

from headrace.backends.contract import GroupInfo, Held, Inspector, Lease
from headrace.cli import letters, moments, output
from headrace.cli.command import Command, add_group, add_server, add_topic, confirm, count, group_name
from headrace.cli.exits import OK
from headrace.cli.server import inspect
from headrace.errors import ConfigurationError


def _topics_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser)


def _topics(args: argparse.Namespace) -> int:
    async def work(inspector: Inspector) -> int:
        topics = await inspector.topics()
        if args.json:
            output.json(topics)
        elif topics:
            output.table(
                ("topic", "partitions", "events", "published", "delayed", "size", "groups"),
                (
                    (
                        t.topic,
                        t.partitions,
                        t.events,
                        t.published,
                        t.delayed,
                        output.size(t.bytes),
                        ", ".join(t.groups) or "none",
                    )
                    for t in topics
                ),
            )
        else:
            output.no("topics", args.url, "`headrace publish orders '{}'` makes one")
        return OK

    return inspect(args, work)


def _groups_arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser, optional=True)
    parser.add_argument(
        "--reset",
        metavar="GROUP",
        type=group_name,
        help="start this group of TOPIC anew at --to; its counts begin again",
    )
    parser.add_argument("--to", metavar="PLACE", help="earliest, latest, or the stream id after which it reads on")
    parser.add_argument("--yes", action="store_true", help="confirm --reset: what the group has in hand is forgotten")
    add_server(parser)


def _groups(args: argparse.Namespace) -> int:
    if args.reset or args.to:
        return _reset(args)

    async def work(inspector: Inspector) -> int:
        groups = await inspector.groups(args.topic)
        leases = {}
        if args.topic is not None:
            leases = {g.group: await inspector.leases(args.topic, g.group) for g in groups if g.ordered}
        if args.json:
            output.json(
                [{**structs.asdict(g), "leases": leases.get(g.group, [])} for g in groups] if leases else groups
            )
        elif groups:
            output.table(
                ("topic", "group", "mode", "unread", "pending", "delayed", "retrying", "dead", "workers", "oldest"),
                map(_row, groups),
            )
            if leases:
                output.line("")
                _print_leases(leases)
        else:
            output.no("groups", args.url, "a group exists once a worker has subscribed with it")
        return OK

    return inspect(args, work)


def _row(group: GroupInfo) -> tuple[output.Cell, ...]:
    g = group
    oldest = output.duration(g.oldest_s) if g.oldest_s else "-"
    return (
        g.topic,
        g.group,
        "ordered" if g.ordered else "shared",
        g.unread,
        g.pending,
        g.delayed,
        g.retrying,
        g.dead,
        g.workers,
        oldest,
    )


def _print_leases(leases: Mapping[str, Sequence[Lease]]) -> None:
    """Who has which partition, of each ordered group."""
    output.table(
        ("group", "partition", "worker", "lease", "unread", "waiting"),
        (
            (group, x.partition, x.worker or "nobody", _left(x), x.unread, x.waiting)
            for group, own in leases.items()
            for x in own
        ),
    )


def _left(lease: Lease) -> str:
    if not lease.worker:
        return "-"
    return f"{output.duration(lease.ends_s)} left" if lease.ends_s > 0 else "ended"


def _reset(args: argparse.Namespace) -> int:
    if not (args.topic and args.reset and args.to):
        raise ConfigurationError(
            "--reset needs a topic and a place: `headrace groups TOPIC --reset GROUP --to earliest|latest|ID --yes`"
        )
    if args.to not in {"earliest", "latest"}:
        moments.before(args.to)  # refuses what is no stream id
    confirm(args, f"group {args.reset} of {args.topic} would forget its place, what it has in hand, and its counts")

    async def work(inspector: Inspector) -> int:
        await inspector.seek(args.topic, args.reset, args.to)
        groups = [g for g in await inspector.groups(args.topic) if g.group == args.reset]
        if args.json:
            output.json(groups)
        else:
            output.line(
                f"group {args.reset} of {args.topic} reads on from {args.to}: {output.number(sum(g.unread for g in groups))} unread"
            )
        return OK

    return inspect(args, work)


def _partitions_arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    parser.add_argument(
        "partitions", metavar="NUMBER", type=count, help="how many it is to have: a multiple of what it has now"
    )
    add_server(parser)


def _partitions(args: argparse.Namespace) -> int:
    async def work(inspector: Inspector) -> int:
        await inspector.grow(args.topic, args.partitions)
        (topic,) = [t for t in await inspector.topics() if t.topic == args.topic]
        if args.json:
            output.json(topic)
        else:
            output.line(f"topic {topic.topic} has {output.plural(topic.partitions, 'partition')}")
        return OK

    return inspect(args, work)


def _pending_arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    add_group(parser)
    parser.add_argument("--count", metavar="N", type=count, default=100, help="at most this many, oldest first (100)")
    add_server(parser)


def _pending(args: argparse.Namespace) -> int:
    async def work(inspector: Inspector) -> int:
        where = await letters.places(inspector, args.topic, args.group)
        held = [(place, h) for place in where for h in await inspector.pending(place, args.group, args.count)]
        held = sorted(held, key=lambda each: moments.place(each[1].token))[: args.count]
        whole = where == [args.topic]
        if args.json:
            output.json([h if whole else {"partition": place, **structs.asdict(h)} for place, h in held])
        elif held:
            columns = ("token", "time", "worker", "idle", "deliveries")
            rows = ((*([] if whole else [place]), *_held(h)) for place, h in held)
            output.table(columns if whole else ("partition", *columns), rows)
        else:
            output.note(f"group {args.group} of {args.topic} has nothing in hand")
        return OK

    return inspect(args, work)


def _held(held: Held) -> tuple[output.Cell, ...]:
    time = moments.said(moments.token_ms(held.token))
    return held.token, time, held.worker, output.duration(held.idle_s), held.deliveries


COMMANDS = {
    "topics": Command(_topics_arguments, _topics),
    "partitions": Command(_partitions_arguments, _partitions),
    "groups": Command(_groups_arguments, _groups),
    "pending": Command(_pending_arguments, _pending),
}

"""`headrace stack advise`: from flags, a manifest, or answers on the terminal to a decision with its numbers."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from headrace.cli import output, streams
from headrace.cli.command import add_json, count
from headrace.cli.exits import NO, OK
from headrace.errors import ConfigurationError

_MANIFEST: Final = Path("stack.yaml")
_ORDERING: Final = ("none", "per-key", "global")
_REPLAY: Final = ("none", "hours", "days", "weeks")
_LOSS: Final = ("none", "seconds", "best-effort")
_LICENCE: Final = ("any", "osi", "permissive")
_OF_REQUIREMENTS: Final = (
    *("rate", "peak", "payload", "retention", "outage", "groups", "ordering"),
    *("replay", "loss", "datacenters", "team", "licence", "memory"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Every requirement, where it comes from, and where the answer goes."""
    parser.add_argument(
        "--from", dest="manifest", metavar="FILE", type=Path, help="requirements of this manifest; flags go before them"
    )
    parser.add_argument("--rate", metavar="N/s", help="events published on average: 2000/s, 90/min")
    parser.add_argument("--peak", metavar="N/s", help="at the peak (four times the average)")
    parser.add_argument("--payload", metavar="SIZE", help="of a typical event: 600B, 4KB")
    parser.add_argument("--retention", metavar="TIME", help="how long handled events stay readable: 6h, 7d")
    parser.add_argument("--outage", metavar="TIME", help="how long a group may be away (1h)")
    parser.add_argument("--groups", metavar="N", type=count, help="services that handle each event (1)")
    parser.add_argument("--ordering", choices=_ORDERING)
    parser.add_argument("--replay", choices=_REPLAY, help="how far back somebody wants to read again")
    parser.add_argument("--loss", choices=_LOSS, help="of acknowledged events, when a server is lost for good")
    parser.add_argument("--datacenters", metavar="N", type=count, help="in how many of them events are published (1)")
    parser.add_argument("--team", metavar="NAMES", help="what the team runs already: redis,kafka,nats,rabbitmq")
    parser.add_argument("--licence", choices=_LICENCE)
    parser.add_argument("--memory", metavar="SIZE", help="of one server, for events (32GiB)")
    parser.add_argument(
        "--facts", metavar="FILE", type=Path, help="what `headrace stack calibrate` has measured on your server"
    )
    parser.add_argument("--adr", metavar="FILE", type=Path, help="write the decision as a document in Markdown")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints the advice. Exit code 1 if nothing fits."""
    from headrace.stack import decision, facts
    from headrace.stack.advise import advise

    requirements, name = _requirements(args)
    advice = advise(requirements, facts.load(args.facts))
    today = dt.datetime.now(dt.UTC).date().isoformat()
    if args.adr is not None:
        args.adr.parent.mkdir(parents=True, exist_ok=True)
        args.adr.write_text(decision.adr(advice, name, today), encoding="utf-8")
    with streams.answer():
        if args.json:
            output.json(advice)
        else:
            _print(advice)
            output.line("")
            output.line(decision.block(advice, today, str(args.adr or "")).rstrip())
    if args.adr is not None and not args.json:
        output.note(f"the decision is written to {args.adr}")
    return NO if advice.choice == "none" else OK


def _requirements(args: argparse.Namespace) -> tuple[Any, str]:
    """What is wanted, and of which service."""
    import msgspec

    from headrace.stack import manifest
    from headrace.stack.quantity import Duration, Rate, Size

    given = {name: getattr(args, name) for name in _OF_REQUIREMENTS if getattr(args, name) is not None}
    start, name = manifest.Requirements(), "this service"
    path = args.manifest or (_MANIFEST if _MANIFEST.exists() and not given else None)
    if path is not None:
        read = manifest.load(path)
        start = read.requirements
        name = read.metadata.name if read.metadata is not None else name
    elif not given and sys.stdin.isatty() and not args.json:
        given = _asked()
    reads: dict[str, Callable[[str], Any]] = {
        "payload": Size.parse, "memory": Size.parse, "retention": Duration.parse, "outage": Duration.parse,
        "team": lambda text: tuple(word.strip() for word in text.split(",") if word.strip()),
    }  # fmt: skip
    changes: dict[str, Any] = {}
    for option, text in given.items():
        if option in ("rate", "peak"):
            continue
        changes[option] = _read(option, reads.get(option, lambda value: value), text)
    if "rate" in given:
        peak = _read("peak", Rate.parse, given["peak"]) if "peak" in given else None
        changes["rate"] = _rates(_read("rate", Rate.parse, given["rate"]), peak)
    elif "peak" in given:
        if start.rate is None:
            raise ConfigurationError("--peak: say --rate, too")
        changes["rate"] = _rates(start.rate.avg, _read("peak", Rate.parse, given["peak"]))
    return msgspec.structs.replace(start, **changes), name


def _rates(avg: Any, peak: Any) -> Any:
    from headrace.stack import manifest

    try:
        return manifest.Rates(avg, peak)
    except ValueError as e:
        raise ConfigurationError(f"--rate, --peak: {e}") from None


def _read(option: str, read: Callable[[str], Any], text: Any) -> Any:
    try:
        return read(text)
    except ConfigurationError as e:
        raise ConfigurationError(f"--{option}: {e}") from None


def _asked() -> dict[str, Any]:
    """Asks what decides; an empty answer leaves it open."""
    output.note("What is asked for? Leave empty what is not known.")
    questions = (
        ("rate", "events a second on average (2000/s)", ()),
        ("peak", "at the peak (8000/s)", ()),
        ("payload", "bytes of an event (600B)", ()),
        ("retention", "how long handled events stay readable (6h)", ()),
        ("ordering", "order", _ORDERING),
        ("loss", "acknowledged events that may be lost with a server", _LOSS),
        ("datacenters", "data centres in which events are published (1)", ()),
        ("team", "what the team runs already (redis,kafka)", ()),
    )
    answers: dict[str, Any] = {}
    for name, question, choices in questions:
        sys.stderr.write(f"{question}{' [' + ', '.join(choices) + ']' if choices else ''}: ")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip()
        if choices and answer and answer not in choices:
            raise ConfigurationError(f"{name}: expected one of {', '.join(choices)}, got {answer!r}")
        if answer:
            answers[name] = count(answer) if name == "datacenters" else answer
    if "peak" in answers and "rate" not in answers:
        answers["rate"] = answers["peak"]
    return answers


def _print(advice: Any) -> None:
    from headrace.stack import decision

    output.line(f"{advice.choice}: {advice.why}")
    if advice.load.assumed:
        output.line(f"assumed: {'; '.join(advice.load.assumed)}")
    output.line("")
    output.table(
        ("system", "points", "ruled out by"),
        ((r.system, f"{r.score:+g}", ", ".join(r.ruled_out)) for r in advice.systems),
    )
    output.line("")
    output.table(("on Redis Streams", "it takes"), decision.takes(advice))
    if advice.flips:
        output.line("")
        output.table(("it would be", "with"), ((f.choice, f.change) for f in advice.flips))
    facts = advice.facts
    output.line("")
    output.line(
        f"measured {facts.measured_on} on {facts.server}, {facts.machine}; the whole judgement is in --json and --adr"
    )

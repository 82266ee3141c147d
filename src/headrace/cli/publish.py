"""`headrace publish`: one event from the command line, or one per line of stdin."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from typing import Final

import msgspec

from headrace import backends, limits
from headrace.backends.contract import Backend, Record, Route
from headrace.cli import moments, output
from headrace.cli.command import Command, add_server, add_topic
from headrace.cli.exits import OK
from headrace.cli.server import open_server
from headrace.errors import ConfigurationError, InvalidEvent
from headrace.settings import Settings

_CHUNK_BYTES: Final = 1 << 18
_BATCHES: Final = 8
"""Batches under way: enough to keep the connection busy, bounded whatever comes in."""
_ATTRIBUTES: Final = frozenset({"source", "time", "subject", "datacontenttype", "dataschema", "traceparent", "tracestate"})
_OWN: Final = frozenset({"id", "type", "key", "data", "attempt", "origin", "reason", "specversion"})


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="the event as JSON; `-` reads it from stdin")
    parser.add_argument("--lines", action="store_true", help="publish each line of stdin as an event")
    parser.add_argument("--raw", action="store_true", help="DATA need not be JSON")
    parser.add_argument("--type", default="", help="the event's type, for topics with several")
    parser.add_argument("--key", help="the ordering key")
    parser.add_argument("--id", help="a name of the event's own: repeats within a day are dropped")
    parser.add_argument("--header", metavar="NAME=VALUE", action="append", default=[], help="a further attribute; may be given several times")
    due = parser.add_mutually_exclusive_group()
    due.add_argument("--delay", metavar="SECONDS", type=_delay_ms, default=0, help="handled this much later")
    due.add_argument("--at", metavar="TIME", help="handled at this time: 2026-11-23T10:00:00+01:00")
    add_server(parser)


def _publish(args: argparse.Namespace) -> int:
    """Everything about the event is checked before the server is asked."""
    if args.lines and args.data not in (None, "-"):
        raise ConfigurationError("--lines reads stdin; leave DATA out")
    if args.lines and args.id is not None:
        raise ConfigurationError("--id names one event, and --lines publishes many: all but the first would be dropped as repeats")
    if not args.lines and args.data is None:
        raise ConfigurationError("nothing to publish: give DATA, `-` to read it from stdin, or --lines")
    record = _template(args)
    if not args.lines:
        body = sys.stdin.buffer.read(limits.body_bytes_max + 1) if args.data == "-" else args.data.encode(errors="surrogateescape")
        record = _with(record, body if args.raw else body.strip(), "data", raw=args.raw)
    with open_server(args) as settings:
        return asyncio.run(_session(settings, args, record))


def _template(args: argparse.Namespace) -> Record:
    """All of the record but its body. Raises InvalidEvent and ConfigurationError."""
    for what, value, most in (("key", args.key, limits.key_bytes_max), ("id", args.id, limits.id_bytes_max), ("type", args.type, limits.header_bytes_max)):
        if value is not None and len(value.encode(errors="surrogateescape")) > most:
            raise InvalidEvent(f"{what}: at most {most:,} bytes, got {len(value.encode(errors='surrogateescape')):,}")
    if args.id == "" or args.key == "":
        raise InvalidEvent("id and key must not be empty: leave the option out")
    if len(args.header) > limits.headers_max:
        raise InvalidEvent(f"headers: at most {limits.headers_max}, got {len(args.header)}")
    return Record(
        body=b"",
        type=args.type.encode(errors="surrogateescape"),
        key=None if args.key is None else args.key.encode(errors="surrogateescape"),
        id=None if args.id is None else args.id.encode(errors="surrogateescape"),
        headers=tuple(map(_header, args.header)),
        delay_ms=args.delay,
        at_ms=moments.instant_ms(args.at) if args.at else 0,
    )


def _header(text: str) -> tuple[bytes, bytes]:
    """An attribute as it goes on the wire: those of CloudEvents by their name, others as `x-name`."""
    name, equals, value = text.partition("=")
    name = name.lower()
    if not equals or limits.NAME.fullmatch(name) is None or name in _OWN:
        raise InvalidEvent(f"header: expected NAME=VALUE with a name of a-z 0-9 . _ - that is not one of {', '.join(sorted(_OWN))}, got {text!r}")
    body = value.encode(errors="surrogateescape")
    if len(body) > limits.header_bytes_max:
        raise InvalidEvent(f"header {name}: at most {limits.header_bytes_max:,} bytes, got {len(body):,}")
    return (name if name in _ATTRIBUTES or name.startswith("x-") else f"x-{name}").encode(), body


def _delay_ms(text: str) -> int:
    """Seconds to milliseconds, for the argument parser. Raises InvalidEvent."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= limits.delay_s_max:
        raise InvalidEvent(f"delay: expected 0 to {limits.delay_s_max:,} seconds, got {text!r}")
    return round(seconds * 1_000)


def _with(record: Record, body: bytes, what: str, *, raw: bool) -> Record:
    """The record with this body. Raises InvalidEvent, naming the place (`what`)."""
    if len(body) > limits.body_bytes_max:
        raise InvalidEvent(f"{what}: an event holds at most {limits.body_bytes_max:,} bytes; store the rest elsewhere and publish its address")
    if not raw:
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError as e:
            raise InvalidEvent(f"{what}: not JSON ({e}); text needs its quotes, --raw publishes it as it is") from None
    return msgspec.structs.replace(record, body=body)


async def _session(settings: Settings, args: argparse.Namespace, record: Record) -> int:
    backend = await backends.connect(settings)
    try:
        if args.lines:
            done = await _Lines(backend, args, record).publish()
        else:
            await backend.publish(Route(args.topic), [record])
            done = 1
    finally:
        await backend.aclose()
    if args.json:
        output.json({"topic": args.topic, "published": done})
    else:
        output.line(f"published {output.plural(done, 'event')} to {args.topic}")
    return OK


class _Lines:
    """Publishes stdin line by line as it comes, with bounded memory."""

    def __init__(self, backend: Backend, args: argparse.Namespace, template: Record) -> None:
        """Each line becomes the body of a copy of `template`."""
        self._backend = backend
        self._args = args
        self._template = template
        self._flying: deque[tuple[int, asyncio.Task[None]]] = deque()
        self._done = 0
        self._progress = output.Progress("published")

    async def publish(self) -> int:
        """Returns how many were published; when it fails, says first how many were. Raises InvalidEvent, naming the line."""
        try:
            try:
                await self._read()
            finally:
                while self._flying:
                    await self._land()
        except BaseException as e:
            self._progress.end()
            output.note(f"headrace: {output.plural(self._done, 'event')} published to {self._args.topic} before it ended")
            for _, task in self._flying:
                task.cancel()
            raise e from None
        self._progress.end()
        return self._done

    async def _read(self) -> None:
        number, rest = 0, b""
        while chunk := await asyncio.to_thread(sys.stdin.buffer.read1, _CHUNK_BYTES):  # type: ignore[attr-defined]  # stdin is buffered
            *lines, rest = (rest + chunk).split(b"\n")
            number = await self._send(lines, number)
            if len(rest) > limits.body_bytes_max:
                _with(self._template, rest, f"line {number + 1}", raw=True)  # says that it is too long
        await self._send([rest], number)

    async def _send(self, lines: list[bytes], number: int) -> int:
        """Sends lines; empty ones are passed over. Returns the number of the last."""
        records: list[Record] = []
        size = 0
        try:
            for line in lines:
                number += 1
                body = line.removesuffix(b"\r")
                if not body.strip():
                    continue
                record = _with(self._template, body, f"line {number}", raw=self._args.raw)
                if len(records) >= limits.publish_records or size + len(body) > limits.batch_bytes_max:
                    await self._launch(records)
                    records, size = [], 0
                records.append(record)
                size += len(body)
        finally:  # the lines before a bad one are published
            if records:
                await self._launch(records)
        return number

    async def _launch(self, records: list[Record]) -> None:
        while len(self._flying) >= _BATCHES:
            await self._land()
        sent = asyncio.ensure_future(self._backend.publish(Route(self._args.topic), records))
        self._flying.append((len(records), sent))
        await asyncio.sleep(0)  # it starts before the next one, so the order is that of the lines

    async def _land(self) -> None:
        count, task = self._flying.popleft()
        await task
        self._done += count
        self._progress.show(self._done)


COMMANDS = {"publish": Command(_arguments, _publish)}

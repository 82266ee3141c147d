"""`headrace publish`: one event from the command line, or one per line of stdin."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from concurrent import futures
from typing import Final

import msgspec

from headrace import backends, limits
from headrace.backends.contract import Backend, Record, Route
from headrace.cli import moments, output
from headrace.cli.command import Command, add_server, add_topic
from headrace.cli.exits import OK
from headrace.cli.server import open_server
from headrace.errors import ConfigurationError, InvalidEvent
from headrace.event import due_ms, header_pairs, id_bytes, key_bytes
from headrace.settings import Settings

_CHUNK_BYTES: Final = 1 << 18
_CHUNKS: Final = 4
_CALL_BYTES: Final = limits.publish_buffer_bytes_max // 2


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_topic(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="the event as JSON; `-` reads it from stdin")
    parser.add_argument("--lines", action="store_true", help="publish each line of stdin as an event")
    parser.add_argument("--raw", action="store_true", help="DATA need not be JSON")
    parser.add_argument("--type", default="", help="the event's type, for topics with several")
    parser.add_argument("--key", help="the ordering key")
    parser.add_argument("--id", help="a name of the event's own: repeats within a day are dropped")
    parser.add_argument(
        "--header",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a further attribute; may be given several times",
    )
    due = parser.add_mutually_exclusive_group()
    due.add_argument("--delay", metavar="SECONDS", type=_seconds, help="handled this much later")
    due.add_argument("--at", metavar="TIME", help="handled at this time: 2026-11-23T10:00:00+01:00")
    add_server(parser)


def _publish(args: argparse.Namespace) -> int:
    """Everything about the event is checked before the server is asked."""
    if args.lines and args.data not in {None, "-"}:
        raise ConfigurationError("--lines reads stdin; leave DATA out")
    if args.lines and args.id is not None:
        raise ConfigurationError("--id names one event, and --lines publishes many: all but the first would be repeats")
    if not args.lines and args.data is None:
        raise ConfigurationError("nothing to publish: give DATA, `-` to read it from stdin, or --lines")
    record = _template(args)
    if not args.lines:
        body = _stdin_at_most(limits.body_bytes_max + 1) if args.data == "-" else os.fsencode(args.data)
        record = _with(record, body if args.raw else body.strip(), "data", raw=args.raw)
    with open_server(args) as settings:
        return asyncio.run(_session(settings, args, record))


def _template(args: argparse.Namespace) -> Record:
    """All of the record but its body. Raises InvalidEvent and ConfigurationError."""
    type_ = os.fsencode(args.type)
    if len(type_) > limits.header_bytes_max:
        raise InvalidEvent(f"type: expected at most {limits.header_bytes_max} bytes, got {len(type_)}")
    at = None if args.at is None else moments.due(args.at)
    delay_ms, at_ms = due_ms(args.delay, at)
    return Record(
        body=b"",
        type=type_,
        key=None if args.key is None else key_bytes(args.key),
        id=None if args.id is None else id_bytes(args.id),
        headers=header_pairs(dict(map(_header, args.header))),
        delay_ms=delay_ms,
        at_ms=at_ms,
    )


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidEvent(f"header: expected NAME=VALUE, got {text!r}")
    return name.lower(), value


def _seconds(text: str) -> float:
    """For the argument parser. Raises InvalidEvent."""
    try:
        return float(text)
    except ValueError:
        raise InvalidEvent(f"delay: expected seconds, got {text!r}") from None


def _with(record: Record, body: bytes, what: str, *, raw: bool) -> Record:
    """The record with this body. Raises InvalidEvent, naming the place (`what`)."""
    if len(body) > limits.body_bytes_max:
        most = f"{limits.body_bytes_max:,} bytes"
        raise InvalidEvent(f"{what}: an event holds at most {most}; store the rest elsewhere and publish its name")
    if not raw:
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise InvalidEvent(f"{what}: not JSON ({e}); text needs its quotes, --raw publishes it as it is") from None
        except RecursionError:
            raise InvalidEvent(f"{what}: nested too deeply to be read; --raw publishes it as it is") from None
    return msgspec.structs.replace(record, body=body)


def _stdin() -> int:
    """The descriptor of stdin. It is read directly: a thread that waits inside Python's own buffer could not be left at the end."""
    if sys.stdin is None:
        raise ConfigurationError("stdin is closed")
    return sys.stdin.fileno()


def _stdin_at_most(size: int) -> bytes:
    """Stdin up to its end, or its first `size` bytes. Raises ConfigurationError if it cannot be read."""
    body = b""
    try:
        while len(body) < size and (chunk := os.read(_stdin(), size - len(body))):
            body += chunk
    except OSError as e:
        raise ConfigurationError(f"stdin cannot be read: {e.strerror}") from None
    return body


async def _session(settings: Settings, args: argparse.Namespace, record: Record) -> int:
    backend = await backends.connect(settings)
    try:
        partitions = await _partitions(backend, args.topic)
        if partitions > 1 and record.key is None:
            raise InvalidEvent(
                f"topic {args.topic} has {partitions} partitions, and the key says which one: give --key"
            )
        args.route = Route(args.topic, partitions)
        if args.lines:
            done = await _Lines(backend, args, record).publish()
        else:
            await backend.publish(args.route, [record])
            done = 1
    finally:
        await backend.aclose()
    if args.json:
        output.json({"topic": args.topic, "published": done})
    else:
        output.line(f"published {output.plural(done, 'event')} to {args.topic}")
    return OK


async def _partitions(backend: Backend, topic: str) -> int:
    """How many the topic has on the server; 1 if it is new.

    Only this topic is looked at: others would cost time, and who may publish need not have the right to see them.
    """
    from headrace.backends.redis import keys
    from headrace.backends.redis.backend import RedisBackend

    if isinstance(backend, RedisBackend):
        return int(await backend.client.command("HGET", keys.TOPICS, topic) or 1)
    return 1


class _Lines:
    """Publishes stdin line by line as it comes, with bounded memory."""

    def __init__(self, backend: Backend, args: argparse.Namespace, template: Record) -> None:
        """Each line becomes the body of a copy of `template`."""
        self._backend = backend
        self._args = args
        self._template = template
        self._chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(_CHUNKS)
        self._done = 0
        self._under_way = 0
        """Of the call that has no answer yet: if it is cut off, the server may have some of them, or all."""
        self._progress = output.Progress("published")

    async def publish(self) -> int:
        """Returns how many were published; if it fails, says first how many were, or may have been. Raises InvalidEvent, naming the line."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._feed, args=(loop, _stdin()), name="stdin", daemon=True).start()
        try:
            await self._read()
        except BaseException:
            self._progress.end()
            done = f"{output.plural(self._done, 'event')} published to {self._args.topic} before it ended"
            more = f"; up to {output.number(self._under_way)} more may have been"
            output.note(f"headrace: at least {done}{more}" if self._under_way else f"headrace: {done}")
            raise
        self._progress.end()
        return self._done

    def _feed(self, loop: asyncio.AbstractEventLoop, stdin: int) -> None:
        """Reads ahead in a thread of its own, which may wait for ever while the command ends."""
        chunk: bytes | OSError = b" "
        while chunk and isinstance(chunk, bytes):
            try:
                chunk = os.read(stdin, _CHUNK_BYTES)
            except OSError as e:
                chunk = e
            putting = self._chunks.put(chunk)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (RuntimeError, futures.CancelledError):  # the command has ended
                putting.close()
                return

    async def _read(self) -> None:
        number, parts, held = 0, [b""], 0
        while chunk := await self._chunks.get():
            if isinstance(chunk, OSError):
                raise ConfigurationError(f"stdin cannot be read: {chunk.strerror}")
            first, *lines = chunk.split(b"\n")
            parts.append(first)
            held += len(first)
            if lines:
                number = await self._send([b"".join(parts), *lines[:-1]], number)
                parts, held = [lines[-1]], len(lines[-1])
            if held > limits.body_bytes_max:
                _with(self._template, b"".join(parts), f"line {number + 1}", raw=True)  # says that it is too long
        await self._send([b"".join(parts)], number)

    async def _send(self, lines: list[bytes], number: int) -> int:
        """Publishes lines; empty ones are passed over. Returns the number of the last."""
        records: list[Record] = []
        size = 0
        for line in lines:
            number += 1
            body = line.removesuffix(b"\r")
            if not body.strip():
                continue
            try:
                record = _with(self._template, body, f"line {number}", raw=self._args.raw)
            except InvalidEvent:
                await self._publish(records)  # the lines before a bad one count
                raise
            if len(records) >= limits.batch_records_max or size + len(body) > _CALL_BYTES:
                await self._publish(records)
                records, size = [], 0
            records.append(record)
            size += len(body)
        await self._publish(records)
        return number

    async def _publish(self, records: list[Record]) -> None:
        """One call after the other, so the order is that of the lines; within a call the backend keeps several in flight."""
        if records:
            self._under_way = len(records)  # of a call that fails, too, a part may be there
            await self._backend.publish(self._args.route, records)
            self._done += len(records)
            self._under_way = 0
            self._progress.show(self._done)


COMMANDS = {"publish": Command(_arguments, _publish)}

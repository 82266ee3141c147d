"""Stored events as commands print them: one line, one JSON object, or in full."""

from __future__ import annotations

import base64
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from headrace import limits
from headrace.backends.contract import Inspector, Letter
from headrace.backends.partition import streams
from headrace.cli import moments, output
from headrace.errors import Refused

_PREVIEW: Final = 100
_ROOM: Final = 8
"""Levels of nesting: more than an answer for scripts puts around the data."""
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What becomes of data that is not JSON, or nested more deeply than can be read."""

Read = Callable[[str, int], Awaitable[Sequence[Letter]]]
"""Letters after a token, oldest first, at most so many."""


async def places(inspector: Inspector, topic: str, group: str | None = None) -> list[str]:
    """Where to look for what is in a topic: itself, or each of its partitions, without those that the group has not begun. Raises Refused."""
    try:
        await inspector.read(topic, "$")
    except Refused:  # no topic, or one of several partitions: then we look at each
        partitions = next((t.partitions for t in await inspector.topics() if t.topic == topic), 1)
        if partitions == 1:
            raise
        all_ = streams(topic, partitions)
        begun = [p for p in all_ if group is None or any(g.group == group for g in await inspector.groups(p))]
        return begun or all_  # the group is unknown, which the first look at its letters says
    return [topic]


async def pages(read: Read, after: str, size: int = limits.batch_records_max) -> AsyncIterator[Sequence[Letter]]:
    """All letters after a token, a page of at most `size` at a time, up to the end as it is when it is reached."""
    while page := await read(after, size):
        yield page
        after = page[-1].token


async def _next(source: AsyncIterator[Sequence[Letter]]) -> Sequence[Letter]:
    """The next page; at the end, none."""
    page = await anext(source, None)
    return page or ()


async def merged(sources: Sequence[AsyncIterator[Sequence[Letter]]]) -> AsyncIterator[tuple[int, Letter]]:
    """The letters of several places, each in its own order, by the times of their tokens; and the number of the place of each."""
    held = [deque(await _next(source)) for source in sources]
    heads = [(moments.place(own[0].token), n) for n, own in enumerate(held) if own]
    heapq.heapify(heads)
    while heads:
        n = heads[0][1]
        own = held[n]
        yield n, own.popleft()
        if not own:
            own.extend(await _next(sources[n]))
        if own:
            heapq.heapreplace(heads, (moments.place(own[0].token), n))
        else:
            heapq.heappop(heads)


def row(letter: Letter) -> tuple[str, str, str, str, str]:
    """Time, id, type, key and the beginning of the data."""
    a = letter.attributes
    return (
        moments.said(moments.token_ms(letter.token)),
        output.printable(a.get("id", letter.token)),
        output.printable(a.get("type", "-")) or "-",
        output.printable(a.get("key", "-")) or "-",
        preview(letter.data),
    )


def preview(data: bytes) -> str:
    """The beginning of the data on one line."""
    text = output.printable(data[: _PREVIEW * 4].decode(errors="backslashreplace"))
    return text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"


def machine(letter: Letter, partition: str = "") -> dict[str, Any]:
    """For scripts: the fields of `Letter`. `data` is the JSON that was published.

    Data that is not JSON, or nested too deeply to be read, is in `data_base64` instead.

    `partition`: where it is, if the command did not name that.
    """
    out: dict[str, Any] = {"partition": partition} if partition else {}
    out |= {"token": letter.token, "attributes": letter.attributes}
    try:
        msgspec.json.decode(letter.data)
        deeper = b"[" * _ROOM + letter.data + b"]" * _ROOM
        out["data"] = msgspec.Raw(msgspec.json.format(deeper, indent=-1)[_ROOM:-_ROOM])  # on one line
    except _UNREADABLE:
        out["data_base64"] = base64.b64encode(letter.data).decode()
    return out | {"reason": letter.reason} if letter.reason else out


def full(letter: Letter, partition: str = "") -> None:
    """Prints everything about an event, for people; `partition` as above."""
    if partition:
        output.line(f"partition: {partition}")
    output.line(f"token: {letter.token}")
    output.line(f"time: {moments.said(moments.token_ms(letter.token))}")
    for name, value in letter.attributes.items():
        output.line(f"{output.printable(name)}: {output.printable(value)}")
    try:
        text = msgspec.json.format(letter.data, indent=2).decode()
    except _UNREADABLE:
        text = output.printable(letter.data.decode(errors="backslashreplace"))
    output.line(text)

"""Stored events as commands print them: one line, one JSON object, or in full."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from headrace import limits
from headrace.backends.contract import Letter
from headrace.cli import moments, output

_PREVIEW: Final = 100
_ROOM: Final = 8
"""Levels of nesting: more than an answer for scripts puts around the data."""
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What becomes of data that is not JSON, or nested more deeply than can be read."""

Read = Callable[[str, int], Awaitable[Sequence[Letter]]]
"""Letters after a token, oldest first, at most so many."""


async def pages(read: Read, after: str) -> AsyncIterator[Sequence[Letter]]:
    """All letters after a token, a page at a time, up to the end as it is when it is reached."""
    while page := await read(after, limits.batch_records_max):
        yield page
        after = page[-1].token


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

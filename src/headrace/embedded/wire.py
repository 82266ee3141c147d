"""One command to one server of a fleet, over a connection of its own: enough to form it and to look at it."""

from __future__ import annotations

import socket
from typing import BinaryIO, Final

from headrace.errors import Refused

answer_s: Final = 1.0
"""How long a server may take to answer."""

Reply = str | int | None | list["Reply"]


def ask(port: int, password: str, *words: str | int) -> Reply:
    """The answer of the server at this port of 127.0.0.1.

    Raises Refused (its error reply), OSError (absent, hanging for `answer_s`, or not a server of this kind).
    """
    with socket.create_connection(("127.0.0.1", port), answer_s) as connection, connection.makefile("rb") as stream:
        connection.sendall(_packed("AUTH", password) + _packed(*words))
        _read(stream)
        return _read(stream)


def fields(reply: Reply) -> dict[str, str]:
    """Lines of the form `name:value`, as INFO and CLUSTER INFO answer."""
    lines = reply.splitlines() if isinstance(reply, str) else ()
    return {name: value for name, mark, value in (line.partition(":") for line in lines) if mark}


def pairs(reply: Reply) -> dict[str, str]:
    """Names and values in turn, as the SENTINEL commands answer."""
    flat = [str(part) for part in reply] if isinstance(reply, list) else []
    return dict(zip(flat[::2], flat[1::2], strict=False))


def _packed(*words: str | int) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _read(stream: BinaryIO) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server hung up")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"+":
        return rest
    if kind == b"-":
        raise Refused(rest)
    if kind == b":":
        return int(rest)
    if kind not in b"$*" or not rest.lstrip("-").isdigit():
        raise ConnectionAbortedError(f"this is no answer of a server: {line[:40]!r}")
    if int(rest) < 0:
        return None
    if kind == b"*":
        return [_read(stream) for _ in range(int(rest))]
    data = stream.read(int(rest) + 2)
    return data[:-2].decode(errors="replace")

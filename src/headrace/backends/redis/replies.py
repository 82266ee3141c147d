"""The one place where a server's and a client library's errors become ours. A test fails on a code that is not listed here.

Three answers to "did it happen?": surely not and may be repeated (`NotConnected`, `Overloaded`), unknown (`NotConnected`: the call
is repeated because every call of ours is idempotent), never will (`Refused`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import hiredis
from redis import exceptions as client_errors

from headrace.errors import BackendError, NotConnected, Overloaded, Refused

_NOT_NOW: Final = {
    "LOADING": "the server is loading its data; waiting for it",
    "BUSY": "the server is busy with a slow script; waiting (an operator may send SCRIPT KILL)",
    "MASTERDOWN": "this replica has lost its primary; waiting for a failover",
    "CLUSTERDOWN": "the cluster is down; waiting for a failover",
    "TRYAGAIN": "the slot is being moved; trying again",
    "NOREPLICAS": "not enough replicas are connected (min-replicas-to-write); waiting for them",
    "ASK": "the slot is being moved to another node of the Cluster; waiting for it to arrive",
    "UNBLOCKED": "a blocking read was ended by the server; reading again",
}
_FULL: Final = {
    "OOM": "the server is out of memory (maxmemory); consume, trim or raise maxmemory, nothing was lost",
    "MISCONF": "the server cannot write to its disk and refuses writes; free its disk, nothing was lost",
    "BACKPRESSURE": "the topic is at its cap: groups are behind, one is forgotten (see `headrace groups`), or there is none (`keep_for_first_group`)",
}
_NEVER: Final = {
    "WRONGTYPE": "a key of this topic holds another type of data: choose another topic name or move that key away",
    "NOPERM": "this user may not do that: extend its ACL (see docs/reference/wire.md)",
    "NOAUTH": "the server wants a password: put it into the URL, redis://user:password@host",
    "WRONGPASS": "wrong user name or password in the URL",
    "DENIED": "the server is in protected mode and accepts only local clients: give it a password or bind it properly",
    "CROSSSLOT": "keys of this call live in different Cluster slots",
    "EXECABORT": "the server aborted the transaction",
    "NOGROUP": "the group does not exist on the server",
    "NOSCRIPT": "the server does not know the script, although it was just loaded",
    "FENCED": "another has taken its place",
    "GAP": "the server has forgotten acknowledged events of this producer",
    "DESTROYED": "the group was destroyed on the server while it was in use",
    "MODE": "the group is used in the other mode",
    "CURSOR": "the group's cursor is elsewhere than it was left",
    "INVALID": "the call was malformed",
    "NOPROTO": "the server does not speak the protocol asked for",
    "ERR": "the server refused",
}
_FAMILIES: Final[tuple[tuple[dict[str, str], type[BackendError]], ...]] = (
    (_NOT_NOW, NotConnected),
    (_FULL, Overloaded),
    (_NEVER, Refused),
)


class Moved(NotConnected):
    """The slot is served by another node of the Cluster. Nothing was done."""

    def __init__(self, slot: int, address: tuple[str, int], text: str) -> None:
        """Which slot, and where it is."""
        super().__init__(
            f"slot {slot} is served by another node of the Cluster, {address[0]}:{address[1]}; going there (if this comes again: a "
            f"URL that follows a Cluster begins with redis+cluster://) [{text}]"
        )
        self.slot, self.address = slot, address


class Grew(NotConnected):
    """The topic has another number of partitions than the call was made for. Nothing was done."""

    def __init__(self, partitions: int) -> None:
        """How many it has; 0: it is getting more right now."""
        super().__init__(
            f"the topic has {partitions} partitions now; following"
            if partitions
            else "the topic is getting more partitions; waiting (was `headrace partitions` interrupted? then run it again)"
        )
        self.partitions = partitions


class Demoted(NotConnected):
    """The server is no primary, or no longer. Nothing was done; the connection is given up."""


class ServerSaid(Refused):
    """A refusal with its code, for callers that act on the code (NOSCRIPT, NOGROUP, GAP, FENCED, DESTROYED)."""

    def __init__(self, code: str, message: str) -> None:
        """`code` is the first word of the server's error."""
        super().__init__(message)
        self.code = code


def from_reply(reply: hiredis.ReplyError) -> BackendError:
    """The error of ours for an error reply of the server."""
    text = str(reply)
    code = text.partition(" ")[0].lstrip("-")
    if code == "MOVED":
        _, slot, place = text.split(" ")[:3]
        host, _, port = place.rpartition(":")
        return Moved(int(slot), (host, int(port)), text)
    if code == "GREW":
        return Grew(int(text.split(" ")[1]))
    if code == "READONLY":
        return Demoted(
            f"this server is a read-only replica; connecting to the primary (a failover may be under way) [{text}]"
        )
    for codes, kind in _FAMILIES:
        if code in codes:
            message = f"{codes[code]} [{text}]"
            return ServerSaid(code, message) if kind is Refused else kind(message)
    if "max number of clients" in text:
        return NotConnected(f"the server has no room for another client (maxclients) [{text}]")
    return ServerSaid(code, f"the server refused [{text}]")


def from_client(error: BaseException, where: str) -> BackendError:
    """The error of ours for an exception of the client library or the operating system while connecting to `where`."""
    text = str(error) or type(error).__name__
    if (
        "invalid username-password" in text or "WRONGPASS" in text
    ):  # over a socket file the client library calls it a ConnectionError
        return Refused(f"{where}: {_NEVER['WRONGPASS']}")
    if isinstance(
        error, client_errors.AuthenticationError | client_errors.AuthorizationError | client_errors.NoPermissionError
    ):
        return Refused(f"{where}: the server does not accept the user name and password of the URL [{text}]")
    if isinstance(error, client_errors.AuthenticationWrongNumberOfArgsError):
        return Refused(f"{where}: the server does not know users; use redis://:password@host [{text}]")
    if isinstance(error, client_errors.BusyLoadingError):
        return NotConnected(f"{where}: {_NOT_NOW['LOADING']}")
    if "DENIED" in text:
        return Refused(f"{where}: {_NEVER['DENIED']}")
    if isinstance(error, client_errors.ResponseError):
        return from_reply(hiredis.ReplyError(text))
    if isinstance(error, client_errors.TimeoutError | asyncio.TimeoutError | TimeoutError):
        return NotConnected(f"{where}: no answer in time; is the address right, and the server up?")
    if isinstance(error, client_errors.RedisError | OSError):
        return NotConnected(f"{where}: cannot connect; is the server up, and the URL right? [{text}]")
    raise error

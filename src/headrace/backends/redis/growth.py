"""A live topic gets more partitions. Every step may be repeated, by anyone and at any time: who finds it begun goes on.

The new number is a multiple of the old one, P: then the keys of a new partition q were before in q modulo P, its parent, and nowhere else.
1. The old partitions are closed: each notes its last entry, the fence, and refuses what is published to it.
2. Every group of a parent gets its children, from their first event on.
3. The ids that are remembered are copied, the delayed events whose keys are at home there now are moved, while nobody uses the children.
4. The children are opened, then the old partitions with the delayed events that stayed, then the list of topics says the new number.
A publisher that was refused sends the same events again, to where they belong now. An ordered group takes up a child when it is done with
the parent up to the fence (`drained`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from headrace import limits
from headrace.backends.partition import partition_of, streams
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.ledger import netstrings
from headrace.backends.redis.lines import place_of
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import Refused

_PAGE: Final = 500


async def grow(client: Client, topic: str, wanted: int) -> None:
    """Returns when the topic has `wanted` partitions; goes on with what was interrupted. Raises Refused if it cannot; then nothing was changed."""
    known = int(await client.command("HGET", keys.TOPICS, topic) or 0)
    begun = int(await client.command("HGET", keys.GROWING, topic) or 0)
    if begun and begun <= known:  # done but for its last step
        await client.call("count", (keys.GROWING,), "done", topic, begun)
        begun = 0
    if begun and begun != wanted:
        raise Refused(
            f"topic {topic} is getting {begun} partitions: first run `headrace partitions {topic} {begun}` to the end"
        )
    if wanted == known:
        return
    _check(topic, known, wanted)
    for name in streams(topic, wanted)[known:]:
        taken = await client.command("HEXISTS", keys.TOPICS, name)
        if taken or (not begun and await client.command("EXISTS", name)):
            raise Refused(
                f"the key {name} is in use, and a new partition of topic {topic} needs that name: move it away"
            )
    if begun != wanted:
        first = await client.command("HSETNX", keys.GROWING, topic, wanted)
        if not first or int(await client.command("HGET", keys.TOPICS, topic) or 0) != known:
            if first:
                await client.call("count", (keys.GROWING,), "done", topic, wanted)
            await grow(client, topic, wanted)  # somebody else began in this moment, or has grown it meanwhile
            return
    await _Growth(client, topic, known, wanted).run()


def _check(topic: str, known: int, wanted: int) -> None:
    """Raises Refused for a number that cannot be had."""
    if not known:
        raise Refused(f"no topic {topic!r} on this server (see `headrace topics`)")
    if wanted < known:
        raise Refused(
            f"topic {topic} has {known} partitions and cannot get fewer: the events of one key would be in two of them, without an order. "
            "Publish to a new topic instead"
        )
    if known == 1:
        raise Refused(
            f"topic {topic} has one partition, the plain stream {topic}, and cannot get more: publish to a new topic with partitions={wanted}"
        )
    if wanted % known or wanted > limits.partitions_max:
        fits = ", ".join(str(n) for n in (2 * known, 3 * known, 4 * known) if n <= limits.partitions_max)
        raise Refused(
            f"topic {topic} has {known} partitions: the new number has to be a multiple of that, of at most {limits.partitions_max}, so that "
            f"each new partition continues one old one; got {wanted}"
            + (f", possible are {fits} and so on" if fits else "")
        )


class _Growth:
    """The steps of one growth."""

    def __init__(self, client: Client, topic: str, old: int, new: int) -> None:
        """From `old` partitions to `new`, a multiple."""
        self._client, self._topic, self._old, self._new = client, topic, old, new
        names = streams(topic, new)
        self._parents, self._children = names[:old], names[old:]

    def _parent(self, child: int) -> int:
        """The number of the parent of `self._children[child]`."""
        return (child + self._old) % self._old

    async def run(self) -> None:
        fences = [(await self._step(parent, "close"))[1] for parent in self._parents]
        for n, child in enumerate(self._children):
            await self._give_groups(self._parents[self._parent(n)], child)
        for parent in self._parents:
            await self._copy_ids(parent)
            await self._move_delayed(parent)
        for n, child in enumerate(self._children):  # groups that have begun since
            await self._give_groups(self._parents[self._parent(n)], child)
        for n, child in enumerate(self._children):
            await self._step(child, "open", self._parents[self._parent(n)], fences[self._parent(n)])
        for parent in self._parents:
            await self._step(parent, "open", "", "")
        await self._announce()

    async def _step(self, stream: str, how: str, *words: bytes | str) -> Any:
        own = keys.partition(stream)
        names = (own.stream, own.packed, own.delayed, own.ids, own.moving)
        return await self._client.call("grow", names, how, self._new, *words)

    async def _give_groups(self, parent: str, child: str) -> None:
        own = keys.partition(child)
        for name, mode in await _groups(self._client, parent):
            group = keys.group(child, name)
            names = (own.stream, group.retry, group.record, group.workers, group.dead, group.delayed, own.packed)
            await self._client.call("join", names, name, "", 0, "0", mode)

    def _family(self, parent: str) -> list[str]:
        return [c for n, c in enumerate(self._children) if self._parents[self._parent(n)] == parent]

    async def _copy_ids(self, parent: str) -> None:
        """To every child: which of them a repeat would go to, its id does not say."""
        start, ids = 0, keys.partition(parent).ids
        while page := await self._client.command("ZRANGE", ids, start, start + _PAGE - 1, "WITHSCORES"):
            for child in self._family(parent):
                await self._step(child, "fill", "ids", *page)
            start += _PAGE

    async def _move_delayed(self, parent: str) -> None:
        """Each to where its key belongs now; those that stay are the parent's again when that is opened."""
        start, moving, family = 0, keys.partition(parent).moving, self._family(parent)
        while page := await self._client.command("ZRANGE", moving, start, start + _PAGE - 1, "WITHSCORES"):
            to: dict[str, list[bytes]] = {}
            for record, due in zip(page[::2], page[1::2], strict=True):
                fields = netstrings(record)
                key = next((v for k, v in zip(fields[::2], fields[1::2], strict=False) if k == b"key"), None)
                name = "" if key is None else f"{self._topic}.{partition_of(key, self._new)}"
                to.setdefault(name if name in family else parent, []).extend((record, due))
            start += len(to.pop(parent, [])) // 2
            for name, words in to.items():
                await self._step(name, "fill", "delayed", *words)
                await self._step(parent, "moved", *words[::2])

    async def _announce(self) -> None:
        """The list of topics, and whoever waits for a change of who serves a group."""
        for where, how, number in (
            (keys.GROWN, "before", self._old), (keys.TOPICS, "more", self._new), (keys.GROWING, "done", self._new)
        ):  # fmt: skip
            await self._client.call("count", (where,), how, self._topic, number)
        for name, mode in await _groups(self._client, self._parents[0]):
            if mode == b"ordered":
                changes = keys.members(self._topic, name).changes
                await self._client.command("XADD", changes, "MAXLEN", 1, "*", "worker", "")
                await self._client.command("PEXPIRE", changes, 86_400_000)


async def _groups(client: Client, stream: str) -> list[tuple[str, bytes]]:
    """Name and mode of the groups of a partition; no mode if an operator has just begun it anew and no worker has joined yet."""
    try:
        listed = await client.command("XINFO", "GROUPS", stream)
    except ServerSaid as e:
        if "no such key" in str(e):
            return []
        raise
    names = [dict(zip(flat[::2], flat[1::2], strict=True))[b"name"].decode() for flat in listed]
    modes = [await client.command("HGET", keys.group(stream, name).record, "mode") for name in names]
    return list(zip(names, (m or b"" for m in modes), strict=True))


async def drained(client: Client, stream: str, group: str) -> bool:
    """Whether an ordered group may take up this partition: it is done with what its keys had in the parent, and before in the parent's parent.

    Raises as the client does.
    """
    own, at = keys.group(stream, group).record, stream
    while not await client.command("HGET", keys.group(at, group).record, "drained"):
        parent, fence = await client.command("HMGET", keys.partition(at).packed, "parent", "fence")
        if not parent:
            break
        at = parent.decode()
        if not await _is_done(client, at, group, fence):
            return False
    if at != stream:
        await client.command("HSET", own, "drained", 1)
    return True


async def _is_done(client: Client, parent: str, group: str, fence: bytes) -> bool:
    """Whether nothing before the fence is unsettled, or waits to be handled again."""
    before = keys.group(parent, group)
    cursor = await client.command("HGET", before.record, "cursor")
    if cursor is None or (
        place_of(cursor) < place_of(fence)
        and await client.command("XRANGE", parent, b"(" + cursor, fence, "COUNT", 1)  # what is trimmed is nobody's
    ):
        return False
    after = "-"
    while page := await client.command("XRANGE", before.retry, after, "+", "COUNT", _PAGE):
        for _, fields in page:  # one that fails again goes to the end, so that it is met there
            if _is_before(fields, fence):
                return False
        after = "(" + page[-1][0].decode()
    return True


def _is_before(fields: Sequence[bytes], fence: bytes) -> bool:
    """Whether an event that is set aside comes from before the fence."""
    origin = next((v for k, v in zip(fields[::2], fields[1::2], strict=False) if k == b"origin"), b"0-0")
    return place_of(origin)[:2] <= place_of(fence)[:2]

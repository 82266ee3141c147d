"""The servers as one thing that can be called: which server has a key, and a connection to it. The topology is known here alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from redis.crc import key_slot

from headrace.backends.contract import Route
from headrace.backends.partition import streams
from headrace.backends.redis.address import Address, parse
from headrace.backends.redis.connection import Wire, open_wire
from headrace.backends.redis.keys import GROWN, TOPICS
from headrace.backends.redis.node import Node, Script, load_scripts
from headrace.backends.redis.replies import Moved
from headrace.backends.redis.topology import Sentinels, SlotMap
from headrace.errors import BackendError, Closed, NotConnected, Refused
from headrace.settings import Settings, redacted

_KEY_AT: Final = {"XINFO": 2, "XGROUP": 2, "MEMORY": 2}
"""The word of a command that is its key, where it is not the next one."""
_KEYLESS: Final = frozenset({"TIME", "INFO", "CONFIG", "PING", "ROLE", "SCAN"})


class Client:
    """Calls the server of a key. A call that fails with NotConnected has an unknown outcome; the next one finds the server again."""

    def __init__(self, settings: Settings, scripts: dict[str, Script] | None = None) -> None:
        """Connects on first use. Raises ConfigurationError for a URL that cannot be meant."""
        self.settings = settings
        self.scripts = load_scripts() if scripts is None else scripts
        self._place = parse(settings)
        self._where = redacted(settings.url)
        self._slots = SlotMap(self._place, self._where) if self._place.kind == "cluster" else None
        self._sentinels = Sentinels(self._place, self._where) if self._place.kind == "sentinel" else None
        self._nodes: dict[Address | None, Node] = {}
        self._partitions: dict[str, tuple[int, int]] = {}
        """Topics that are known to be on the server's list: partitions as declared here, and as they are."""
        self._closed = False

    @property
    def clustered(self) -> bool:
        """Whether keys may live on different servers."""
        return self._slots is not None

    @property
    def apart(self) -> Callable[[bytes, bytes], bool] | None:
        """Whether one call may *not* use two keys; None: it always may."""
        return None if self._slots is None else lambda key, other: key_slot(key) != key_slot(other)

    def head(self, name: str, keys: int) -> tuple[bytes, ...]:
        """The first words of a call of the script: EVALSHA, digest, number of keys."""
        return (b"EVALSHA", self.scripts[name].digest, b"%d" % keys)

    # Which server

    def _node(self, address: Address | None) -> Node:
        node = self._nodes.get(address)
        if node is None:

            async def connect(silence_s: float) -> Wire:
                return await self._connect(address, silence_s)

            node = self._nodes[address] = Node(connect, self.settings.request_s, self.scripts)
        return node

    async def _connect(self, address: Address | None, silence_s: float) -> Wire:
        if self._sentinels is not None:
            address = await self._sentinels.primary()
        try:
            wire = await open_wire(self._place, self.settings.connect_s, self._where, silence_s, address)
        except NotConnected:
            if self._slots is not None:
                self._slots.doubt()
            raise
        wire.on_moved = self._moved
        if self._sentinels is not None and address is not None:
            self._sentinels.watch(wire, address)
        return wire

    def _moved(self, error: Moved) -> None:
        if self._slots is not None:
            self._slots.moved(error.slot, error.address)
            self._slots.doubt()

    async def node(self, key: bytes = b"") -> Node:
        """The server of a key. Raises NotConnected, Refused, Closed."""
        if self._closed:
            raise Closed("the app was closed")
        return self._node(None if self._slots is None else await self._slots.find(key))

    async def nodes(self) -> list[Node]:
        """Every primary. Raises NotConnected, Refused, Closed."""
        if self._slots is None:
            return [await self.node()]
        return [self._node(address) for address in await self._slots.primaries()]

    async def wire(self, key: bytes) -> Wire:
        """The shared connection to the server of a key, opened if need be."""
        return await (await self.node(key)).wire()

    async def open(self, key: bytes, silence_s: float) -> Wire:
        """A further connection to the server of a key; the caller closes it."""
        return await (await self.node(key)).open(silence_s)

    def connected(self, key: bytes) -> Wire | None:
        """The shared connection to the server of a key, if it is there right now."""
        address = None if self._slots is None else self._slots.nowait(key)
        node = self._nodes.get(address)
        return None if node is None else node.connected()

    def drop(self, key: bytes) -> None:
        """Gives up the shared connection to the server of a key; the next call opens a new one, which loads the scripts."""
        if (wire := self.connected(key)) is not None:
            wire.drop()

    # Calls

    async def command(self, *words: bytes | str | int | float) -> Any:
        """Sends a plain command to the server of its key (without a key: to any) and returns its reply."""
        name = str(words[0])
        key = b"" if name in _KEYLESS or len(words) == 1 else words[_KEY_AT.get(name, 1)]
        return await (await self.node(key if isinstance(key, bytes) else str(key).encode())).command(*words)

    async def call(self, name: str, keys: tuple[bytes, ...], *words: bytes | str | int | float) -> Any:
        """Runs a script on the server of its first key and returns its reply."""
        return await (await self.node(keys[0])).call(name, keys, *words)

    # Topics

    def is_registered(self, route: Route) -> bool:
        """Whether `register` has nothing to do."""
        known = self._partitions.get(route.topic)
        return known is not None and known[0] == route.partitions

    def count(self, route: Route) -> int:
        """How many partitions a registered topic has, as far as is known."""
        known = self._partitions.get(route.topic)
        return route.partitions if known is None else known[1]

    async def register(self, route: Route) -> None:
        """Puts a topic on the server's list of topics, once.

        Raises Refused if it never had as many partitions as are declared, or a stream of it belongs to another topic.
        """
        if self.is_registered(route):
            return
        topic, declared = route.topic, route.partitions
        try:
            known = await self.command("HGET", TOPICS, topic)
            if known is None:
                await self._require_distinct(topic, declared)
                if not await self.command("HSETNX", TOPICS, topic, declared):
                    known = await self.command("HGET", TOPICS, topic)
            count = int(known or declared)
            if count != declared:
                await self._require_grown(topic, declared, count)
        except BackendError:
            self._partitions.pop(topic, None)
            raise
        self._partitions[topic] = (declared, count)

    async def _require_distinct(self, topic: str, partitions: int) -> None:
        """Raises Refused if a new topic has the name of another one's partition, or one of its partitions that of a topic."""
        whole, _, number = topic.rpartition(".")
        if (
            whole
            and number.isdecimal()
            and topic in streams(whole, int(await self.command("HGET", TOPICS, whole) or 1))
        ):
            raise Refused(
                f"{topic} is a partition of topic {whole}: publish and subscribe to {whole}, or use another name"
            )
        if partitions > 1:
            names = streams(topic, partitions)
            taken = [
                n for n, of in zip(names, await self.command("HMGET", TOPICS, *names), strict=True) if of is not None
            ]
            if taken:
                raise Refused(
                    f"topic {topic} would have a partition {taken[0]}, and there is a topic of that name: use another name"
                )

    async def _require_grown(self, topic: str, declared: int, count: int) -> None:
        """Raises Refused unless the topic once had as many partitions as are declared, and has grown since."""
        if b"%d" % declared in (await self.command("HGET", GROWN, topic) or b"").split():
            return
        more = declared > count > 1 and declared % count == 0
        raise Refused(
            f"topic {topic} has {count} partitions on the server, and this program declares {declared}: write partitions={count}, "
            + (f"or let `headrace partitions {topic} {declared}` grow it" if more else "or use another topic")
        )

    async def recount(self, topic: str) -> int:
        """Asks the server how many partitions a topic has. Raises as `command` does."""
        count = int(await self.command("HGET", TOPICS, topic) or 0)
        known = self._partitions.get(topic)
        if count and known is not None:
            self._partitions[topic] = (known[0], count)
        return count

    def forget(self, topic: str) -> None:
        """The topic was deleted on the server, or has grown: it is looked up anew with its next use."""
        self._partitions.pop(topic, None)

    async def aclose(self) -> None:
        """Closes every connection. Idempotent."""
        self._closed = True
        for node in self._nodes.values():
            node.close()
        for finder in (self._slots, self._sentinels):
            if finder is not None:
                await finder.aclose()

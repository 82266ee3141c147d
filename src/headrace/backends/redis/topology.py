"""Where the primary is: behind sentinels, or for each slot of a Cluster. redis-py's own clients find out; we only ask them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from redis import exceptions as client_errors
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.cluster import PRIMARY
from redis.crc import key_slot

from headrace.backends.redis import replies
from headrace.backends.redis.address import Address, Place
from headrace.backends.redis.connection import Wire
from headrace.errors import BackendError, NotConnected, Refused

log = logging.getLogger("headrace.redis")
_LOOK_S: Final = 1.0
"""How often the sentinels are asked whether the primary is still the one."""
_NOT_OURS: Final = ("protocol", "db")
"""Arguments of our connections that its own clients choose for themselves."""


class SlotMap:
    """Which primary of a Cluster has which slot. Learned when it is first needed, and again when it was wrong."""

    def __init__(self, place: Place, where: str) -> None:
        """Asks nobody yet; `where`: the URL for people."""
        arguments = {name: value for name, value in place.arguments.items() if name not in _NOT_OURS}
        if place.secure:
            arguments["ssl"] = True
        self._where = where
        self._nodes = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in place.seeds],
            require_full_coverage=False,
            dynamic_startup_nodes=False,
            **arguments,
        ).nodes_manager
        self._seeds = self._nodes.startup_nodes
        """Nodes of the URL: a name stays right when every node has another address by now."""
        self._seen: dict[str, ClusterNode] = {}
        """Those that were found when the map was learned last."""
        self._moved: dict[int, Address] = {}
        """What servers have told since the map was learned; they know better than the node that was asked."""
        self._known = False
        self._learning = asyncio.Lock()

    def nowait(self, key: bytes) -> Address | None:
        """Where the key is, as far as that is known."""
        if not self._known:
            return None
        moved = self._moved.get(key_slot(key)) if self._moved else None
        return moved or self._primary(key)

    async def find(self, key: bytes) -> Address:
        """Where the key is. Raises NotConnected, Refused."""
        if not self._known:
            async with self._learning:
                if not self._known:
                    await self._learn()
        found = self.nowait(key)
        if found is None:
            self._known = False
            raise NotConnected(f"{self._where}: no primary serves slot {key_slot(key)}; waiting for a failover")
        return found

    async def primaries(self) -> list[Address]:
        """Every primary. Raises NotConnected, Refused."""
        await self.find(b"")
        return sorted((node.host, int(node.port)) for node in self._nodes.get_nodes_by_server_type(PRIMARY))

    def _primary(self, key: bytes) -> Address | None:
        nodes = self._nodes.slots_cache.get(key_slot(key))
        return (nodes[0].host, int(nodes[0].port)) if nodes else None

    async def _learn(self) -> None:
        self._nodes.startup_nodes = {**self._seen, **self._seeds}  # any of them may be down, or know nothing new
        try:
            try:
                await (
                    self._nodes.initialize()
                )  # not the client's own: it asks one of the nodes for more, which may be the one that is down
            finally:
                await self.aclose()  # what was learned stays; its connections are not needed
        except client_errors.RedisClusterException as e:
            if "not enabled" in f"{e} {e.__cause__}":
                raise Refused(
                    f"{self._where}: this server is not part of a Cluster: use redis:// without +cluster"
                ) from None
            raise NotConnected(
                f"{self._where}: no node of the Cluster answers; are the addresses right, and the servers up? [{e}]"
            ) from None
        except IndexError:  # the first primary of none
            raise NotConnected(
                f"{self._where}: no node of the Cluster has slots; is it still being set up? Then wait"
            ) from None
        except Exception as e:  # noqa: BLE001 - from_client raises again what it does not know
            raise replies.from_client(e, self._where) from None
        self._seen = dict(self._nodes.nodes_cache)
        self._moved.clear()
        self._known = True

    def moved(self, slot: int, address: Address) -> None:
        """A server said that this slot is elsewhere."""
        self._moved[slot] = address

    def doubt(self) -> None:
        """A server did not answer, or a slot was not where it should be: learn the map again before the next call."""
        self._known = False

    async def aclose(self) -> None:
        """Closes its connections. Idempotent."""
        await self._nodes.aclose()
        await self._nodes.aclose("startup_nodes")


class Sentinels:
    """The primary of a service, as its sentinels name it."""

    def __init__(self, place: Place, where: str) -> None:
        """Asks nobody yet. The sentinels are taken to have the same user and password as the servers, or none."""
        self._where, self._service, self._seeds = where, place.service, place.seeds
        self._arguments = {name: value for name, value in place.arguments.items() if name not in _NOT_OURS}
        if place.secure:
            self._arguments["ssl"] = True
        self._sentinel: Sentinel | None = None
        self._wires: list[tuple[Wire, Address]] = []
        self._watching: asyncio.Task[None] | None = None

    def watch(self, wire: Wire, address: Address) -> None:
        """Gives the connection up when the sentinels name another primary: an old one may still answer, or be silent for long."""
        self._wires = [pair for pair in self._wires if pair[0].closed is None]
        self._wires.append((wire, address))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while self._wires:
            await asyncio.sleep(_LOOK_S)
            try:
                primary = await self.primary()
            except BackendError as e:
                log.debug("asking the sentinels: %s", e)  # whoever connects learns the same, and says it
                continue
            self._wires = [pair for pair in self._wires if pair[0].closed is None]
            for wire, address in self._wires:
                if address != primary:
                    wire.give_up(
                        NotConnected(
                            f"{self._where}: the sentinels name another primary, {primary[0]}:{primary[1]}; going there"
                        )
                    )

    def _ask(self, *, with_password: bool) -> Sentinel:
        secrets = () if with_password else ("username", "password")
        arguments: dict[str, Any] = {n: v for n, v in self._arguments.items() if n not in secrets}
        return Sentinel(self._seeds, sentinel_kwargs=arguments)  # type: ignore[no-untyped-call]  # so it is

    async def primary(self) -> Address:
        """Where the primary is now. Raises NotConnected, Refused."""
        if self._sentinel is None:
            self._sentinel = self._ask(with_password=True)
        try:
            try:
                host, port = await self._sentinel.discover_master(self._service)
            except client_errors.AuthenticationError as e:
                if "without any password" not in str(e):
                    raise
                await self._close()
                self._sentinel = self._ask(with_password=False)
                host, port = await self._sentinel.discover_master(self._service)
        except MasterNotFoundError as e:
            raise NotConnected(
                f"{self._where}: the sentinels name no primary of {self._service!r}; is the name right? Waiting for a failover [{e}]"
            ) from None
        except Exception as e:  # noqa: BLE001 - from_client raises again what it does not know
            raise replies.from_client(e, self._where) from None
        return str(host), int(port)

    async def aclose(self) -> None:
        """Closes its connections. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
        await self._close()

    async def _close(self) -> None:
        if self._sentinel is not None:
            await asyncio.gather(*(s.aclose() for s in self._sentinel.sentinels))
            self._sentinel = None

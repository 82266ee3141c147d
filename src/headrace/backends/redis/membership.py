"""Who serves a group in ordered mode, and which partitions are this worker's share.

Every worker sees the same list of live workers and computes the same shares from it, so nobody runs after a partition that another
one should have. That is a hint only: what is safe is decided by the leases of the partitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from zlib import crc32

from headrace import limits
from headrace.backends.contract import Subscription
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.replies import ServerSaid
from headrace.backoff import Backoff
from headrace.errors import BackendError

log = logging.getLogger("headrace.redis")
_SOON_S: Final = 0.05


def shares(members: Sequence[str], partitions: int) -> dict[str, list[int]]:
    """The partitions of each worker: at most one more than any other has, and few move when a worker comes or goes.

    Rendezvous hashing with a limit: each partition goes to the worker that ranks highest for it and has room.
    """
    few, more = divmod(partitions, len(members))
    out: dict[str, list[int]] = {m: [] for m in members}
    for number in range(partitions):
        for member in sorted(members, key=lambda m: crc32(f"{m}/{number}".encode()), reverse=True):
            own = out[member]
            if len(own) < few:
                own.append(number)
                break
            if len(own) == few and more:
                more -= 1
                own.append(number)
                break
    return out


class Membership:
    """Keeps this worker among the live ones and says what its share is, whenever that changes."""

    def __init__(
        self, client: Client, subscription: Subscription, share: Callable[[list[int]], Awaitable[float]]
    ) -> None:
        """`share` is given this worker's partitions, takes what is free of them, and returns the seconds until it wants to be called again."""
        self._client, self._sub, self._share = client, subscription, share
        own = keys.members(subscription.route.topic, subscription.group)
        self._keys = (own.workers, own.changes)
        self._wire: Wire | None = None
        self._waiting: asyncio.Future[object] | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def begin(self) -> None:
        """Joins the live ones, takes the share, and goes on in the background. Raises as the client does."""
        last, pause_s = await self._look("stay")
        self._task = asyncio.ensure_future(self._live(last, pause_s))

    async def stop(self) -> None:
        """Ends; the worker is not taken off the list here."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()

    def abandon(self) -> None:
        """Ends at once."""
        if self._task is not None:
            self._task.cancel()
        if self._wire is not None:
            self._wire.close()

    async def leave(self) -> None:
        """Takes the worker off the list; the others share what it had. Raises as the client does."""
        await self._call("leave")

    async def tell(self) -> None:
        """A partition is free: whose share it is may take it. Raises as the client does."""
        await self._call("tell")

    async def _call(self, how: str) -> tuple[list[bytes], int, bytes]:
        members, first_ms, last = await self._client.call(
            "members", self._keys, self._sub.consumer, int(self._sub.lease_s * 1000), how
        )
        return members, first_ms, last

    async def _look(self, how: str) -> tuple[bytes, float]:
        """The last change that is known, and the seconds until it is time to look again."""
        members, first_ms, last = await self._call(how)
        count = await self._client.recount(self._sub.route.topic) or self._sub.route.partitions
        mine = shares([m.decode() for m in members], count).get(self._sub.consumer, [])
        again_s = await self._share(mine)
        interval_s = self._sub.lease_s / limits.renewals_per_lease
        return last, min(interval_s, first_ms / 1000 + 0.001 if first_ms >= 0 else interval_s, again_s)

    async def _live(self, last: bytes, pause_s: float) -> None:
        backoff = Backoff(f"membership of group {self._sub.group} on {self._sub.route.topic}")
        while True:
            try:
                await self._wait(last, pause_s)
                last, pause_s = await self._look("stay")
            except ServerSaid as e:
                log.error("membership of group %s on %s: %s", self._sub.group, self._sub.route.topic, e)
                await asyncio.sleep(_SOON_S)
                pause_s = self._sub.lease_s / limits.renewals_per_lease
            except BackendError as e:
                await backoff.wait(e)
                pause_s = 0.0
            except (
                Exception
            ):  # a bug; the leases are renewed elsewhere, and what they hold is not to be without a member
                log.critical("the membership failed in an unforeseen way; it goes on", exc_info=True)
                await asyncio.sleep(_SOON_S)
                pause_s = self._sub.lease_s / limits.renewals_per_lease
            else:
                backoff.over()

    async def _wait(self, last: bytes, pause_s: float) -> None:
        """Until something has changed since, or the time is over."""
        if pause_s <= 0:
            return
        if self._wire is None or self._wire.closed is not None:
            self._waiting = None
            self._wire = await self._client.open(self._keys[1], self._client.settings.request_s + self._sub.lease_s)
        if self._waiting is None:
            self._waiting = self._wire.send(
                pack(("XREAD", "BLOCK", int(self._sub.lease_s * 1000), "STREAMS", self._keys[1], last))
            )
        done, _ = await asyncio.wait([self._waiting], timeout=pause_s)
        if done:
            waiting, self._waiting = self._waiting, None
            with contextlib.suppress(ServerSaid):  # the stream of changes is gone: there is something to look at
                waiting.result()

"""Taking over what a dead worker holds, or what is under names of ours without our knowing of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from headrace import limits
from headrace.backends.contract import Delivery, Subscription
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.slots import Slot

log = logging.getLogger("headrace.redis")


async def claim(
    client: Client, subscription: Subscription, stream: str, slot: Slot, limit: int, held: Iterable[Slot] | None
) -> list[tuple[Sequence[Delivery], int]]:
    """Puts up to `limit` entries of dead workers into `slot`: each one's events, and how many workers it saw die.

    With `held`, those that are under other names of ours than these instead. Raises as the client does; after NotConnected the entries may be under
    the slot's name.
    """
    group = subscription.group
    own = keys.group(stream, group)
    gone, taken = await client.call(
        "claim",
        (keys.partition(stream).stream, own.retry, own.workers),
        group,
        subscription.consumer,
        slot.name,
        limit,
        int(subscription.lease_s * 1000),
        limits.deaths_alone,
        *((b"dead",) if held is None else (b"own", *[s.name for s in held])),
    )
    if gone:
        log.error("%s, group %s: %d events were deleted on the server before they were handled", stream, group, gone)
    if taken and held is None:
        log.warning("%s, group %s: took over %d events of a worker that died", stream, group, len(taken))
    out: list[tuple[Sequence[Delivery], int]] = []
    for source, deaths, id_, fields in taken:
        hold = slot.main if source == 1 else slot.retry
        out.append((hold.receive([(id_, fields)]), deaths if held is None else 0))
    return out

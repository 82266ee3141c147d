"""Trimming: what every group is done with and nobody wants to replay."""

from __future__ import annotations

import logging

from headrace import limits
from headrace.backends.contract import Route
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.errors import BackendError, Refused

log = logging.getLogger("headrace")


async def trim(client: Client, route: Route, stream: str, record: bytes, most: int) -> bool:
    """Trims up to `most` entries of a partition of the topic and notes in the group's `record`, if it exists, how many were ever added.

    True: there is more to trim. Raises as the client does.
    """
    _, more = await _trim(client, route, stream, record, most, route.retain_events)
    return bool(more)


async def make_room(client: Client, route: Route, stream: str, events: int) -> bool:
    """For who was refused `events` because a partition is full, and repeats that anyway: whether there is more room now.

    What is kept for replay gives way to what comes, unless that would not help. Never raises.
    """
    room = route.cap_events - events
    packed = max(room - 2 * limits.packing_records, 0)  # of packed entries, rather one less is trimmed
    wanted = (room, packed) if room >= 0 else (route.retain_events,)
    nobodys = keys.group(stream, "").record  # any other may be in another slot of a Cluster or out of the user's rights
    try:
        for kept in dict.fromkeys(min(route.retain_events, n) for n in wanted):
            trimmed, _ = await _trim(client, route, stream, nobodys, limits.batch_records_max * 10, kept)
            if trimmed:
                return True
    except Refused as e:  # now only a worker can make room
        log.warning("trimming %s, which is full: %s", stream, e)
    except BackendError as e:
        log.debug("trimming %s: %s", stream, e)
    return False


async def _trim(client: Client, route: Route, stream: str, record: bytes, most: int, kept: int) -> tuple[int, int]:
    own, unread = keys.partition(stream), int(not route.keep_for_first_group)
    age_ms = int(route.retain_s * 1000)
    trimmed, more = await client.call("trim", (own.stream, record, own.packed), kept, age_ms, most, unread)
    return trimmed, more

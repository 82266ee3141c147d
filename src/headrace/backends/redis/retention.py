"""Trimming: what every group is done with and nobody wants to replay."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from headrace import limits
from headrace.backends.contract import Route
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.replies import Grew
from headrace.errors import BackendError, Refused

log = logging.getLogger("headrace")


async def trim(client: Client, route: Route, stream: str, record: bytes, most: int) -> bool:
    """Trims up to `most` entries of a partition of the topic and notes in the group's `record`, if it exists, how many were ever added.

    True: there is more to trim. Raises as the client does.
    """
    _, more = await _trim(client, route, stream, record, most)
    return bool(more)


async def make_room(client: Client, route: Route, stream: str) -> bool:
    """For who was refused because a partition is full, and repeats it anyway: whether there is some now. Never raises."""
    nobodys = keys.group(
        stream, ""
    ).record  # any other could be in another slot of a Cluster or out of the user's rights
    try:
        trimmed, _ = await _trim(client, route, stream, nobodys, limits.batch_records_max * 10)
        return trimmed > 0
    except Refused as e:  # now only a worker can make room
        log.warning("trimming %s, which is full: %s", stream, e)
    except BackendError as e:
        log.debug("trimming %s: %s", stream, e)
    return False


async def make_way(client: Client, routes: Mapping[str, Route], error: BackendError) -> bool:
    """After a commit that was refused because of its outputs' topics, `routes` by their partitions: whether there is room for them now."""
    if isinstance(error, Grew):
        for topic in {route.topic for route in routes.values()}:
            await client.recount(topic)
    full = re.search(r"\[BACKPRESSURE (\S+) ", str(error))
    return full is not None and full[1] in routes and await make_room(client, routes[full[1]], full[1])


async def _trim(client: Client, route: Route, stream: str, record: bytes, most: int) -> tuple[int, int]:
    own, unread = keys.partition(stream), int(not route.keep_for_first_group)
    kept = (route.retain_events, int(route.retain_s * 1000))
    trimmed, more = await client.call("trim", (own.stream, record, own.packed), *kept, most, unread)
    return trimmed, more

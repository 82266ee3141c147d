"""Trimming: what every group is done with and nobody wants to replay."""

from __future__ import annotations

from headrace.backends.contract import Route
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client


async def trim(client: Client, route: Route, stream: str, record: bytes, most: int) -> bool:
    """Trims up to `most` entries of a partition of the topic and notes in the group's `record`, if it exists, how many were ever added.

    True: there is more to trim. Raises as the client does.
    """
    own = keys.partition(stream)
    _, more = await client.call(
        "trim",
        (own.stream, record, own.packed),
        route.retain_events,
        int(route.retain_s * 1000),
        most,
    )
    return bool(more)

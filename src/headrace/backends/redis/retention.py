"""Trimming: what every group is done with and nobody wants to replay."""

from __future__ import annotations

from headrace.backends.contract import Route
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client


async def trim(client: Client, route: Route, stream: str, record: bytes | None, most: int) -> bool:
    """Trims up to `most` entries of a partition of the topic and notes in the group's `record`, if it exists, how many were ever added.

    `record` is None for who belongs to no group: the script is given the key that a group without a name would have, which nobody writes;
    any other, an empty one too, could be in another slot of a Cluster or out of the user's rights.

    True: there is more to trim. Raises as the client does.
    """
    own = keys.partition(stream)
    _, more = await client.call(
        "trim",
        (own.stream, keys.group(stream, "").record if record is None else record, own.packed),
        route.retain_events,
        int(route.retain_s * 1000),
        most,
    )
    return bool(more)

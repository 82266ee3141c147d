"""A group joins a partition: makes what is absent, and says what it found."""

from __future__ import annotations

import logging

from headrace.backends.contract import Subscription
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import Refused

log = logging.getLogger("headrace.redis")


async def join(client: Client, subscription: Subscription, stream: str, *, again: bool = False) -> None:
    """Creates what is absent of the group on one partition; in shared mode the worker's lease begins.

    `again`: the group was there and is gone; it begins anew with what takes the place of the deleted partition. Raises NotConnected, Refused.
    """
    own, group = keys.partition(stream), keys.group(stream, subscription.group)
    mode, name, topic = "ordered" if subscription.ordered else "shared", subscription.group, subscription.route.topic
    try:
        answer: bytes = await client.call(
            "join",
            (own.stream, group.retry, group.record, group.workers, group.dead, group.delayed, own.packed),
            name,
            subscription.consumer,
            int(subscription.lease_s * 1000),
            "0" if again or subscription.start == "earliest" else "$",
            mode,
        )
    except ServerSaid as e:
        if e.code == "MODE":
            raise Refused(
                f"group {name} of topic {topic} is used in {'shared' if subscription.ordered else 'ordered'} mode on the server, and this "
                f"program subscribes it {mode}: choose another group name (it gets every event), or begin anew when no worker of it runs: "
                f"headrace groups {topic} --reset {name} --to earliest|latest|ID"
            ) from None
        if e.code == "DESTROYED":
            raise Refused(
                f"group {name} of topic {topic} was destroyed on the server while it was in use, and with it the place "
                f"where it stood. Say where to begin again: headrace groups {topic} --reset {name} --to earliest|latest|ID"
            ) from None
        raise
    if answer == b"renewed" or (again and answer != b"joined"):  # joined: another worker was here first, and said it
        log.error(
            "%s was deleted on the server (FLUSHALL, DEL, eviction or a restore): what group %s had not settled is lost; "
            "beginning with the new topic's first event",
            stream,
            name,
        )

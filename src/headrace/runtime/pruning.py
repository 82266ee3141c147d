"""The inboxes of a worker's groups forget what cannot come again, every hour."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from headrace import backends, limits
from headrace.errors import BackendError
from headrace.settings import Settings
from headrace.topic import Group
from headrace.transaction import Transactions, Unavailable

log = logging.getLogger("headrace")


async def prune_always(groups: Iterable[Group], settings: Settings) -> None:
    """Prunes now and then, until it is cancelled. `settings`: of the server that the worker is connected to."""
    with_inbox = [(group, group.inbox) for group in groups if group.inbox is not None]
    while with_inbox:
        for group, inbox in with_inbox:
            try:
                await prune(group, inbox, settings)
            except (BackendError, Unavailable) as e:  # the next time will do
                log.info("pruning the inbox of group %s of topic %s: %s", group.name, group.topic.name, e)
            except Exception:  # a bug, or a driver's: events are handled all the same
                log.exception("pruning the inbox of group %s of topic %s", group.name, group.topic.name)
        await asyncio.sleep(limits.prune_s)


async def prune(group: Group, inbox: Transactions, settings: Settings) -> int:
    """Returns how many were forgotten: none while an event of the group is unsettled for so long that the inbox may have to know it."""
    inspector = await backends.inspector(settings)
    try:
        infos = [info for info in await inspector.groups(group.topic.name) if info.group == group.name]
    finally:
        await inspector.aclose()
    if any(info.oldest_s >= inbox.keep_s for info in infos):
        return 0
    return await inbox.prune(group.topic.name, group.name)

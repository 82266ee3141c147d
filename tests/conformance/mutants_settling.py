"""Memory servers that settle wrongly on purpose: commits, effects, ids, retries, returns, dead letters."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import chain

from headrace.backends.contract import (
    Delivery,
    Effect,
    Settled,
    Settlement,
    Unsettled,
)
from headrace.backends.entry import copy_of, derived_id
from headrace.backends.memory.server import MemoryServer
from headrace.backends.memory.state import Delayed, Fields, Group, Pending, Topic


class AckBeforeCommit(MemoryServer):
    """An event is settled when it is taken: what a dead worker held is lost."""

    def _hold(self, group: Group, pending: Pending) -> None:
        group.handled += 1

    def _wins(self, group: Group, token: bytes) -> bool:
        group.handled -= 1
        return True


class NoGate(MemoryServer):
    """A late commit is applied although another worker has settled the events."""

    def _wins(self, group: Group, token: bytes) -> bool:
        return True


class OutputBeforeGate(MemoryServer):
    """Outputs are written before it is known whether the commit wins."""

    def _settle(self, group: Group, one: Settled, settlement: Settlement) -> Unsettled | None:
        for n, (route, record) in enumerate(settlement.outputs):
            self._accept(self.open(route), record, derived_id(settlement.delivery, group.name, n))
        return super()._settle(
            group, one, Settlement(settlement.delivery, settlement.verdict, (), settlement.effects, settlement.delay_ms)
        )


class EffectBeforeGate(MemoryServer):
    """Effects are written before it is known whether the commit wins."""

    def _settle(self, group: Group, one: Settled, settlement: Settlement) -> Unsettled | None:
        if settlement.effects and not self._wins(group, settlement.delivery.token):
            self.data.apply(settlement.effects)
        return super()._settle(group, one, settlement)


class EffectsHalfWritten(MemoryServer):
    """Effects are not validated beforehand: those before the refused one stay."""

    def _effects(self, effects: Sequence[Effect]) -> str:
        return next((why for why in (self.data.apply([e]) for e in effects) if why), "")


class EffectsIgnored(MemoryServer):
    """What cannot be written is dropped in silence, and its event is settled."""

    def _effects(self, effects: Sequence[Effect]) -> str:
        super()._effects(effects)
        return ""


class RefusedIsLost(MemoryServer):
    """An event whose writes are refused is settled all the same."""

    def _settle(self, group: Group, one: Settled, settlement: Settlement) -> Unsettled | None:
        answer = super()._settle(group, one, settlement)
        if answer is not None and answer.refused:
            group.pending.pop(settlement.delivery.token)
        return answer


class NoIds(MemoryServer):
    """A caller-given id does not drop repeats."""

    def _new_id(self, topic: Topic, id_: bytes) -> bool:
        return True


class IdsForEver(MemoryServer):
    """A caller-given id is never forgotten."""

    def _new_id(self, topic: Topic, id_: bytes) -> bool:
        fresh = id_ not in topic.ids
        topic.ids[id_] = float("inf")
        return fresh


class RetryLost(MemoryServer):
    """A retry's original is settled and its copy is not written."""

    def _retry(self, group: Group, delivery: Delivery, settlement: Settlement) -> None:
        return


class RetryAtOnce(MemoryServer):
    """A retry does not wait for its delay."""

    def _retry(self, group: Group, delivery: Delivery, settlement: Settlement) -> None:
        super()._retry(group, delivery, Settlement(delivery, settlement.verdict, reason=settlement.reason))


class RetryForgetsAttempts(MemoryServer):
    """Every retry is the second attempt."""

    def _retry(self, group: Group, delivery: Delivery, settlement: Settlement) -> None:
        heapq.heappush(
            group.delayed,
            Delayed(
                self.now() + settlement.delay_ms / 1000, self._next(), copy_of(delivery.token, delivery.fields, 2), 2
            ),
        )


class RetryWithNewId(MemoryServer):
    """A retry is another event."""

    def _again(self, group: Group, fields: Fields, attempt: int) -> None:
        super()._again(group, (b"id", self._token(), *fields[2:]), attempt)


class RetryForEveryGroup(MemoryServer):
    """A retry is published again, so other groups get the event twice."""

    def _retry(self, group: Group, delivery: Delivery, settlement: Settlement) -> None:
        topic = next(t for t in self.topics.values() if t.groups.get(group.name) is group)
        heapq.heappush(
            topic.delayed,
            Delayed(self.now() + settlement.delay_ms / 1000, self._next(), copy_of(delivery.token, delivery.fields, 2)),
        )
        group.handled += 1


class ReturnBurnsAttempt(MemoryServer):
    """To hand an event back costs an attempt."""

    def _return(self, group: Group, delivery: Delivery) -> None:
        self._again(group, copy_of(delivery.token, delivery.fields, delivery.attempt + 1), delivery.attempt + 1)


class ReturnIsLost(MemoryServer):
    """An event that is handed back is gone."""

    def _return(self, group: Group, delivery: Delivery) -> None:
        return


class DeadWithoutBytes(MemoryServer):
    """Dead letters do not keep the event's body."""

    def _rest(self, group: Group, fields: Fields) -> None:
        super()._rest(group, (*fields[:-1], b""))


class DeadWithoutReason(MemoryServer):
    """Dead letters do not say why."""

    def _rest(self, group: Group, fields: Fields) -> None:
        pairs = zip(fields[::2], fields[1::2], strict=True)
        super()._rest(group, tuple(chain.from_iterable((n, v) for n, v in pairs if n != b"reason")))


class DeadComesAgain(MemoryServer):
    """A dead letter is handed out as well."""

    def _rest(self, group: Group, fields: Fields) -> None:
        super()._rest(group, fields)
        self._again(group, fields, 1)

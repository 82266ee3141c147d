"""Order per key: in tests of users, on the memory backend; and the books of lines and of what is in hand."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from headrace import Context, Headrace, Retry
from headrace.backends.contract import Delivery, Settlement, Verdict
from headrace.backends.redis.holding import Holding
from headrace.backends.redis.lines import aside_of


class Step(Struct):
    key: str
    n: int


def test_a_users_test_sees_the_order_of_each_key() -> None:
    app = Headrace("redis://nowhere")
    steps = app.topic("steps", Step, key="key", partitions=4)
    seen: dict[str, list[int]] = {"a": [], "b": []}

    @steps.subscribe("g", ordered=True, retry=Retry(attempts=3))
    async def handle(step: Step, ctx: Context) -> None:
        await asyncio.sleep(0)
        if step.n == 2 and ctx.attempt < 3:
            raise ValueError("not yet")
        seen[step.key].append(step.n)

    async def play() -> None:
        async with app.testing() as t:
            await steps.publish_many([Step(key, n) for n in range(6) for key in "ab"])
            await t.drain()

    asyncio.run(play())
    assert seen == {"a": list(range(6)), "b": list(range(6))}


def holding(*keys: bytes) -> tuple[Holding, list[Delivery]]:
    """A partition with one event for each key, all given out."""
    own = Holding(0, "orders", "g")
    own.begin(b"1:w", b"0-0")
    own.receive([(b"%d-0" % n, (b"id", b"%d" % n, b"key", key, b"data", b"{}")) for n, key in enumerate(keys, 1)])
    return own, own.give(100)


def copy(of: Delivery, attempt: int, token: bytes = b"99-0") -> tuple[bytes, list[bytes]]:
    fields = [b"due", b"0", b"id", b"x", b"attempt", b"%d" % attempt, b"origin", of.token, *of.fields[2:]]
    return token, fields


def verdicts(own: Holding) -> list[tuple[bytes, Verdict]]:
    return [
        (s.delivery.token, s.verdict) if isinstance(s, Settlement) else (s.token, Verdict.HANDLED) for s in own.ready
    ]


def test_nothing_beyond_a_gap_is_written() -> None:
    own, (a, b, c) = holding(b"a", b"b", b"c")
    own.marks[b] = b
    own.marks[c] = c
    own.collect()
    assert own.ready == []
    own.marks[a] = a
    own.collect()
    assert own.ready == [a, b, c]


def test_what_is_behind_a_failed_event_of_its_key_is_set_aside_whatever_became_of_it() -> None:
    own, (a1, b, a2) = holding(b"a", b"b", b"a")
    own.marks |= {a1: Settlement(a1, Verdict.RETRY), b: b, a2: a2}
    own.collect()
    assert verdicts(own) == [(b"1-0", Verdict.RETRY), (b"2-0", Verdict.HANDLED), (b"3-0", Verdict.RETURN)]


def test_a_call_that_failed_is_repeated_as_it_was() -> None:
    own, (a1, a2) = holding(b"a", b"a")
    own.marks |= {a1: Settlement(a1, Verdict.RETRY), a2: a2}
    own.collect()
    sent, own.ready = own.ready, []
    own.restore(sent)
    own.collect()
    assert verdicts(own) == [(b"1-0", Verdict.RETRY), (b"2-0", Verdict.RETURN)]


def test_what_became_ready_while_a_call_failed_stands_behind_what_was_in_it() -> None:
    own, (a, b, c) = holding(b"a", b"b", b"c")
    own.mark(a)
    own.collect()
    flying, own.ready = own.ready, []
    own.mark(b)
    own.collect()
    own.mark(c)
    own.restore(flying)
    own.collect()
    assert own.ready == [a, b, c]


def test_returned_events_are_given_out_again_unless_something_behind_them_was_handled() -> None:
    own, (a, b) = holding(b"a", b"b")
    own.marks |= {a: Settlement(a, Verdict.RETURN), b: Settlement(b, Verdict.RETURN)}
    own.collect()
    assert (own.ready, own.next) == ([], 0)
    a, b = own.give(10)
    own.marks |= {a: Settlement(a, Verdict.RETURN), b: b}
    own.collect()
    assert verdicts(own) == [(b"1-0", Verdict.RETURN), (b"2-0", Verdict.HANDLED)]


def test_a_line_goes_on_in_the_order_of_the_partition() -> None:
    own, (a1, a2) = holding(b"a", b"a")
    own.marks |= {a1: Settlement(a1, Verdict.RETRY), a2: Settlement(a2, Verdict.RETURN)}
    own.collect()
    own.lines.add(aside_of(own, *copy(a2, 1, b"98-0")))
    assert own.lines.due(1e15, 10) == [], "the first is on its way back"
    own.lines.add(aside_of(own, *copy(a1, 2)))
    one, two = own.lines.due(1e15, 10)
    assert (one.token, two.token) == (b"99-0", b"98-0")
    own.lines.settled(one, None)
    own.lines.settled(two, None)
    assert not own.lines


def test_a_copy_that_is_read_back_before_its_answer_is_not_waited_for() -> None:
    own, (a1,) = holding(b"a")
    own.marks[a1] = Settlement(a1, Verdict.RETRY)
    own.collect()
    own.lines.add(aside_of(own, *copy(a1, 2)))
    (one,) = own.lines.due(1e15, 10)
    own.lines.add(aside_of(own, *copy(a1, 3, b"100-0")))
    own.lines.settled(one, 3)
    (again,) = own.lines.due(1e15, 10)
    own.lines.settled(again, None)
    assert not own.lines


def test_a_packed_entry_leaves_as_a_whole() -> None:
    own = Holding(0, "orders", "g")
    fields = [b"id", b"p.1.1", b"events", b"2", b"before", b"0", b"sizes", b"[2,2]", b"data", b"{}{}"]
    own.receive([(b"1-0", fields), (b"2-0", [b"id", b"p.1.3", b"data", b"{}"])])
    one, two, three = own.give(10)
    own.marks[one] = one
    own.collect()
    assert own.ready == []
    own.marks |= {two: two, three: three}
    own.collect()
    assert own.ready == [one, two, three]


def test_an_event_that_was_set_aside_does_not_overtake_one_that_fails_again() -> None:
    own, (a1, a2, b) = holding(b"a", b"a", b"b")
    asides = [aside_of(own, *copy(event, 2, b"%d-9" % n)) for n, event in enumerate((a1, a2, b))]
    for aside, event in zip(asides, (a1, a2, b), strict=True):
        own.lines.add(aside)
        own.aside[aside] = Settlement(event, Verdict.RETRY) if event is a1 else event
    assert [one.verdict for _, one in own.asides()] == [Verdict.RETRY, Verdict.RETURN, Verdict.HANDLED]

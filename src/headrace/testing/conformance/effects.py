"""What effects promise: written with the commit of their event, once, entirely or not at all."""

from __future__ import annotations

from headrace.backends.contract import Delivery, Effect, Record, Route, Settlement, Unsettled, Verdict
from headrace.testing.conformance.harness import Value
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import Stage, expect, expect_same, numbered

BILLS = Route("bills")

EVERY_COMMAND: tuple[Effect, ...] = (
    (b"SET", b"string", b"one"),
    (b"SETNX", b"string", b"ignored"),
    (b"SETNX", b"string-new", b"new"),
    (b"APPEND", b"string", b" two"),
    (b"INCRBY", b"integer", b"41"),
    (b"INCRBY", b"integer", b"-1"),
    (b"INCRBYFLOAT", b"float", b"10.5"),
    (b"INCRBYFLOAT", b"float", b"0.1"),
    (b"SET", b"deleted", b"x"),
    (b"DEL", b"deleted"),
    (b"HSET", b"hash", b"a", b"1", b"b", b"2", b"c", b"3"),
    (b"HSETNX", b"hash", b"a", b"ignored"),
    (b"HDEL", b"hash", b"c"),
    (b"HINCRBY", b"hash", b"b", b"5"),
    (b"HINCRBYFLOAT", b"hash", b"f", b"1.5"),
    (b"RPUSH", b"list", b"1", b"2", b"3", b"2"),
    (b"LPUSH", b"list", b"0", b"00"),
    (b"LREM", b"list", b"-1", b"2"),
    (b"LTRIM", b"list", b"0", b"-2"),
    (b"SADD", b"set", b"a", b"b", b"c"),
    (b"SREM", b"set", b"b"),
    (b"ZADD", b"zset", b"1", b"a", b"2.5", b"b", b"3", b"c"),
    (b"ZREM", b"zset", b"c"),
    (b"ZINCRBY", b"zset", b"2", b"a"),
)
EXPECTED: dict[str, Value] = {
    "string": b"one two",
    "string-new": b"new",
    "integer": b"40",
    "float": b"10.6",
    "deleted": None,
    "hash": {b"a": b"1", b"b": b"7", b"f": b"1.5"},
    "list": [b"00", b"0", b"1", b"2"],
    "set": {b"a", b"c"},
    "zset": {b"a": 3.0, b"b": 2.5},
}


async def every_effect_does_what_redis_does(stage: Stage) -> None:
    """Each command of the table, in the order of recording."""
    feed = await stage.worker()
    await stage.publish(*numbered(1))
    got = await stage.receive(feed, 1)
    await stage.commit(
        feed,
        [Settlement(got[0], effects=[e for e in EVERY_COMMAND if e[0].decode() in stage.harness.features.effects])],
    )
    for key, value in EXPECTED.items():
        expect_same(f"key {key}", await stage.harness.redis_value(key), value)


async def an_effect_can_end(stage: Stage) -> None:
    """EXPIRE and PEXPIRE give a key a time to live, SET takes it away."""
    feed = await stage.worker()
    await stage.publish(*numbered(1))
    got = await stage.receive(feed, 1)
    effects = [(b"SET", key, b"x") for key in (b"short", b"long", b"kept")]
    times = [
        (b"PEXPIRE", b"short", b"200"),
        (b"EXPIRE", b"long", b"600"),
        (b"PEXPIRE", b"kept", b"200"),
        (b"SET", b"kept", b"y"),
    ]
    await stage.commit(feed, [Settlement(got[0], effects=[*effects, *times])])
    await stage.elapse(0.4)
    values = [await stage.harness.redis_value(key) for key in ("short", "long", "kept")]
    expect_same("keys short, long, kept", values, [None, b"x", b"y"])


async def effects_happen_once(stage: Stage) -> None:
    """An effect is there when its event is settled, once, however often the commit is repeated; not before."""
    feed = await stage.worker()
    await stage.publish(*numbered(8))
    got = await stage.receive(feed, 8)
    settled = [Settlement(d, effects=[(b"HINCRBY", b"revenue", b"ann", b"3"), (b"RPUSH", b"seen", d.id)]) for d in got]
    expect_same("revenue before the commit", await stage.harness.redis_value("revenue"), None)
    await stage.commit(feed, settled[:5])
    await feed.commit(settled)
    await feed.commit(settled)
    expect_same("revenue", await stage.harness.redis_value("revenue"), {b"ann": b"24"})
    expect_same("seen", await stage.harness.redis_value("seen"), [d.id for d in got])


async def an_uncommitted_effect_leaves_no_trace(stage: Stage) -> None:
    """A worker that dies with recorded writes has written nothing; the next worker's are the only ones."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(3))
    held = await stage.receive(first, 3)
    await stage.commit(first, [_counted(held[0])])
    await stage.harness.crash(first)
    expect_same("counted", await stage.harness.redis_value("counted"), b"1")
    await stage.elapse(1.2 * stage.harness.lease_s)
    await stage.commit(second, [_counted(d) for d in await stage.receive(second, 2)])
    expect_same("counted", await stage.harness.redis_value("counted"), b"3")


def _counted(delivery: Delivery) -> Settlement:
    return Settlement(delivery, effects=[(b"INCRBY", b"counted", b"1")])


async def _refuse(stage: Stage, *effects: Effect) -> Unsettled:
    """Settles five events, one of which records these effects between others and an output; returns the answer for that one."""
    feed, bills = await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(*numbered(5))
    got = await stage.receive(feed, 5)
    bad = Settlement(
        got[2],
        effects=[(b"SET", b"trace", b"x"), *effects, (b"SET", b"trace2", b"x")],
        outputs=[(BILLS, Record(b"bill"))],
    )
    answers = await feed.commit([_counted(got[0]), got[1], bad, _counted(got[3]), got[4]])
    expect_same("number of refused settlements", len(answers), 1)
    expect(answers[0].settled is bad, f"the answer gives the settlement back, got {answers[0]}")
    expect(answers[0].refused, "a refused settlement is told why")
    expect_same("writes of the others", await stage.harness.redis_value("counted"), b"2")
    traces = [await stage.harness.redis_value(k) for k in ("trace", "trace2")]
    expect_same("writes of the refused one", traces, [None, None])
    await stage.expect_nothing(bills, "the output of a refused settlement is not written")
    info = await stage.group()
    expect_same("handled, pending", (info.handled, info.pending), (4, 1))
    await stage.commit(feed, [Settlement(bad.delivery, Verdict.DEAD, reason=answers[0].refused.encode())])
    letters = await stage.inspector.dead("orders", "billing")
    expect_same("reasons of the dead letters", [letter.reason for letter in letters], [answers[0].refused])
    return answers[0]


async def _given(stage: Stage, *effects: Effect) -> None:
    """Makes these effects, by an event of another topic."""
    route = Route("setup")
    feed = await stage.worker("setup", route)
    await stage.publish(*numbered(1), route=route)
    await stage.commit(feed, [Settlement((await stage.receive(feed, 1))[0], effects=effects)])


async def a_wrong_type_is_refused(stage: Stage) -> None:
    """A command that the key's type does not allow is refused: this event stays pending, nothing of it is written, others are settled."""
    await _given(stage, (b"SET", b"taken", b"text"))
    answer = await _refuse(stage, (b"HINCRBY", b"taken", b"ann", b"1"))
    expect("taken" in answer.refused, f"the reason names the key: {answer.refused}")


async def a_value_that_is_no_integer_is_refused(stage: Stage) -> None:
    """So is counting up what is not a number."""
    await _given(stage, (b"HSET", b"taken", b"ann", b"three"))
    answer = await _refuse(stage, (b"HINCRBY", b"taken", b"ann", b"1"))
    expect("taken" in answer.refused, f"the reason names the key: {answer.refused}")


async def an_overflow_is_refused(stage: Stage) -> None:
    """So is counting beyond 64 bits."""
    await _given(stage, (b"SET", b"taken", b"9223372036854775000"))
    await _refuse(stage, (b"INCRBY", b"taken", b"5000"))


async def a_conflict_with_an_earlier_effect_is_refused(stage: Stage) -> None:
    """So is what only the event's own earlier effect makes impossible."""
    await _refuse(stage, (b"SADD", b"fresh", b"a"), (b"INCRBY", b"fresh", b"1"))


async def an_unknown_command_is_refused(stage: Stage) -> None:
    """So is a command that is not in the table."""
    await _refuse(stage, (b"FLUSHALL", b"x"))


async def wrong_arguments_are_refused(stage: Stage) -> None:
    """So is a command with a field but no value."""
    await _refuse(stage, (b"HSET", b"fresh", b"field"))


SCENARIOS = scenarios(
    (every_effect_does_what_redis_does, "effects"),
    (an_effect_can_end, "effects"),
    (effects_happen_once, "effects"),
    (an_uncommitted_effect_leaves_no_trace, "effects"),
    (a_wrong_type_is_refused, "effects", "outputs"),
    (a_value_that_is_no_integer_is_refused, "effects", "outputs"),
    (an_overflow_is_refused, "effects", "outputs"),
    (a_conflict_with_an_earlier_effect_is_refused, "effects", "outputs"),
    (an_unknown_command_is_refused, "effects", "outputs"),
    (wrong_arguments_are_refused, "effects", "outputs"),
)

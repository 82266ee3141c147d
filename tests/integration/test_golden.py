"""The golden vectors hold on real servers, and Headrace itself packs exactly these words.

A case of a script: `before` (plain commands) makes the state, the script is called with `keys` and `argv`, `reply` is its answer, and
each command of `after` has the `reply` beside it. `given` says the same in terms of the contract. Everything is text; bytes that are no
text are {"hex": ...}. Values that differ from run to run are patterns: {"any": "id"} is a stream id that the server chose, {"time": ms}
its clock (Unix milliseconds) plus that much, {"between": [low, high]} a number, {"error": text} an error that begins so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hiredis
import pytest

from headrace import limits, testing
from headrace.backends.contract import Delivery, Record, Route, Settlement, Verdict
from headrace.backends.entry import attempt_of, copy_of, derived_id
from headrace.backends.partition import partition_of
from headrace.backends.redis import keys
from headrace.backends.redis.ledger import netstrings
from headrace.backends.redis.node import load_scripts
from headrace.backends.redis.publish import words
from headrace.backends.redis.record_batch import unpacked
from headrace.backends.redis.settle import Writes, calls
from headrace.context import Context, Surroundings
from tests.servers import Server, require

GOLDEN: Final = Path(testing.__file__).parent / "golden"
SCRIPTS: Final = load_scripts()
CLOCK_MS: Final = 30_000
"""How far a time may be off: the server's clock is asked before the call."""
Case = dict[str, Any]


def cases(*files: str) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}: {case['name']}")
        for name in files
        for case in json.loads((GOLDEN / f"{name}.json").read_text())
    ]


def raw(value: Any) -> Any:
    """As it travels."""
    if isinstance(value, list):
        return [raw(v) for v in value]
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return value.encode() if isinstance(value, str) else value


@pytest.fixture(scope="module", params=["valkey", "redis"])
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for all cases, with every script loaded."""
    require(request.param)
    with Server(request.param, appendfsync="no") as server:
        for script in SCRIPTS.values():
            assert server.command("SCRIPT", "LOAD", script.text) == script.digest
        yield server


def ask(server: Server, command: list[Any]) -> Any:
    try:
        return server.command(*raw(command))
    except hiredis.ReplyError as e:
        return e


def matches(expected: Any, got: Any, now_ms: int) -> bool:
    """Whether a reply is the one expected, patterns included."""
    match expected:
        case {"error": text}:
            return isinstance(got, hiredis.ReplyError) and str(got).startswith(text)
        case {"any": "id"}:
            return (
                isinstance(got, bytes)
                and re.fullmatch(rb"\d+-\d+", got) is not None
                and abs(int(got.split(b"-")[0]) - now_ms) < CLOCK_MS
            )
        case {"time": offset_ms}:
            return bool(abs(int(got) - now_ms - offset_ms) < CLOCK_MS)
        case {"between": [low, high]}:
            return bool(low <= int(got) <= high)
        case list():
            return (
                isinstance(got, list)
                and len(got) == len(expected)
                and all(map(matches, expected, got, [now_ms] * len(got)))
            )
        case _:
            return type(got) is type(raw(expected)) and bool(got == raw(expected))


def clock_ms(server: Server) -> int:
    seconds, micros = server.command("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize(("script", "case"), cases(*SCRIPTS))
def test_scripts_answer_as_written(shared: Server, script: str, case: Case) -> None:
    answers_as_written(shared, SCRIPTS[script].digest, case)


def answers_as_written(shared: Server, digest: bytes, case: Case) -> None:
    shared.command("FLUSHALL")
    now_ms = clock_ms(shared)
    for command in case["before"]:
        words = [str(now_ms + word["time"]) if isinstance(word, dict) and "time" in word else word for word in command]
        got = ask(shared, words)
        assert not isinstance(got, hiredis.ReplyError), f"{command}: {got}"
    now_ms = clock_ms(shared)
    got = ask(shared, ["EVALSHA", digest.decode(), str(len(case["keys"])), *case["keys"], *case["argv"]])
    assert matches(case["reply"], got, now_ms), f"{case['says']}\nexpected {case['reply']}\ngot      {got!r}"
    for step in case["after"]:
        got = ask(shared, step["command"])
        assert matches(step["reply"], got, now_ms), (
            f"{case['says']}\n{step['command']}\nexpected {step['reply']}\ngot      {got!r}"
        )


MUTANTS: Final = (
    ("advance", "if record[1] ~= ARGV[2] then", "if false then"),
    ("advance", "if moves and not done and record[2] ~= ARGV[3] then", "if false then"),
    ("advance", "local done = moves and record[2] == ARGV[4]", "local done = false"),
    ("advance", "if applies(i) then\n    if i > nm", "if true then\n    if i > nm"),
    ("advance", "if why then return {2", "if false then return {2"),
    ("advance", "'ENTRIESREAD', read)  -- first", "'ENTRIESREAD', 0)  -- first"),
    ("advance", "call('XDEL', KEYS[2]", "tostring(KEYS[2]"),
    ("advance", "'cursor', ARGV[4], ", ""),
    ("lease", "if owner ~= '' and owner ~= ARGV[2] and till > now then", "if false then"),
    (
        "lease",
        "tonumber(string.match(record[3] or '0', '^%d+')) + 1",
        "tonumber(string.match(record[3] or '0', '^%d+'))",
    ),
    ("lease", "if record[3] ~= ARGV[4] then", "if false then"),
    ("lease", "'owner', '', 'until', 0", "'until', 0"),
    ("members", "call('ZREMRANGEBYSCORE', KEYS[1], '-inf', fmt('%d', now)) > 0", "false"),
    ("members", "if changed or ARGV[3] == 'tell' then", "if changed then"),
    ("join", "if record[4] and mode ~= '' and record[4] ~= mode then", "if false then"),
    ("join", "if mode ~= '' and (not record[4]", "if (not record[4]"),
    ("grow", "if open then return {0} end", ""),
    ("grow", "if tonumber(state[2] or 0) > tonumber(to) then", "if false then"),
    ("grow", "if state[2] ~= to then", "if true then"),
    ("grow", "if call('EXISTS', KEYS[3]) == 1 then call('RENAME', KEYS[3], KEYS[5]) end", ""),
    ("publish", "if packed[3] and packed[3] ~= ARGV[8] then", "if false then"),
    ("publish", "if skip >= count then", "if skip >= count and not call('HGET', KEYS[5], 'of') then"),
)
"""Scripts of ordered mode and of growing that are broken on purpose, each in one place."""


@pytest.mark.parametrize(("script", "old", "new"), MUTANTS, ids=range(len(MUTANTS)))
def test_the_vectors_notice_a_broken_script(shared: Server, script: str, old: str, new: str) -> None:
    text = SCRIPTS[script].text
    assert text.count(old) == 1, "the script has changed; the mutant must follow"
    digest = shared.command("SCRIPT", "LOAD", text.replace(old, new))
    noticed = 0
    for param in cases(script):
        try:
            answers_as_written(shared, digest, param.values[1])
        except AssertionError:
            noticed += 1
    assert noticed


NAMED: Final[dict[str, Callable[[keys.PartitionKeys, keys.GroupKeys], tuple[bytes, ...]]]] = {
    "publish": lambda p, g: (p.stream, p.producer(b"p1"), p.delayed, p.ids, p.packed),
    "join": lambda p, g: (p.stream, g.retry, g.record, g.workers, g.dead, g.delayed, p.packed),
    "commit": lambda p, g: (g.retry, g.record, g.dead, g.delayed),
    "tend": lambda p, g: (p.stream, p.delayed, g.retry, g.delayed, g.workers),
    "claim": lambda p, g: (p.stream, g.retry, g.workers),
    "leave": lambda p, g: (p.stream, g.retry, g.workers, g.record),
    "trim": lambda p, g: (p.stream, g.record, p.packed),
    "ledger": lambda p, g: (p.stream, g.record, g.retry, p.delayed, g.delayed, g.dead, g.workers, p.packed),
    "move": lambda p, g: (g.retry, g.record),
    "seek": lambda p, g: (p.stream, g.record, g.retry, g.dead, g.delayed, p.packed),
}
"""The keys of every case but the first of `commit` and `move`, which is one of two streams."""


@pytest.mark.parametrize(("script", "case"), cases(*NAMED))
def test_keys_are_those_of_the_library(script: str, case: Case) -> None:
    part, group = keys.partition("orders"), keys.group("orders", "billing")
    named = list(NAMED[script](part, group))
    own: list[bytes] = raw(case["keys"])
    if script in ("commit", "move"):
        first, *own = own
        assert first in (part.stream, group.retry, group.dead)
    if script == "tend" and len(own) < len(named):
        named = named[:2]
    assert own[: len(named)] == named


def record(given: dict[str, Any]) -> Record:
    return Record(
        body=raw(given["body"]),
        type=raw(given.get("type", "")),
        key=raw(given.get("key")),
        id=raw(given.get("id")),
        headers=tuple((raw(name), raw(value)) for name, value in given.get("headers", ())),
        delay_ms=given.get("delay_ms", 0),
        at_ms=given.get("at_ms", 0),
    )


def delivery(given: dict[str, Any]) -> Delivery:
    return Delivery(raw(given["token"]), raw(given["fields"]), None, given.get("attempt", 1))


def settlement(given: dict[str, Any]) -> Settlement:
    return Settlement(
        delivery(given),
        Verdict[given.get("verdict", "HANDLED")],
        outputs=[(Route(o["topic"]), record(o["record"])) for o in given.get("outputs", ())],
        effects=[tuple(raw(effect)) for effect in given.get("effects", ())],
        delay_ms=given.get("delay_ms", 0),
        reason=raw(given.get("reason", "")),
    )


@pytest.mark.parametrize(("script", "case"), [c for c in cases("publish") if "given" in c.values[1]])
def test_headrace_packs_batches_so(script: str, case: Case) -> None:
    records = [record(r) for r in case["given"]["records"]]
    argv = raw(case["argv"])
    route = Route("orders", packing=case["given"].get("packing", 1))
    assert argv[3:8] == [
        b"%d" % n for n in (len(records), route.cap_events, limits.producer_idle_s, int(route.id_window_s * 1000), 1)
    ]
    assert argv[8:] == words(records, route.packing)


@pytest.mark.parametrize(("script", "case"), [c for c in cases("commit") if "given" in c.values[1]])
def test_headrace_packs_settlements_so(script: str, case: Case) -> None:
    plain = [delivery(d) for d in case["given"]["plain"]]
    rich = [settlement(s) for s in case["given"]["rich"]]
    argv = raw(case["argv"])
    ((plain_, rich_, writes),) = calls(plain, rich, lambda: Writes("billing", "orders", None))
    assert raw(case["keys"][5:]) == writes.keys
    assert argv[3:5] == [b"%d" % len(plain_), b"%d" % len(rich_)]
    assert argv[5:] == [*(d.token for d in plain), *(s.delivery.token for s in rich), *writes.words]


@pytest.mark.parametrize(("script", "case"), cases("netstring"))
def test_delayed_records_are_netstrings(shared: Server, script: str, case: Case) -> None:
    packed, fields = raw(case["packed"]), raw(case["fields"])
    assert b"".join(b"%d:%b," % (len(f), f) for f in fields) == packed
    assert netstrings(packed) == fields
    shared.command("FLUSHALL")
    shared.command("ZADD", "{orders}:delayed", 1, packed)
    shared.command("EVALSHA", SCRIPTS["tend"].digest, 2, "orders", "{orders}:delayed", "", 0, 10)
    ((_, got),) = shared.command("XRANGE", "orders", "-", "+")
    assert got == fields


@pytest.mark.parametrize(("script", "case"), cases("partition"))
def test_partitions_are_chosen_so(script: str, case: Case) -> None:
    assert partition_of(case["key"].encode(), case["partitions"]) == case["partition"]


@pytest.mark.parametrize(("script", "case"), cases("record_batch"))
def test_packed_entries_are_read_so(script: str, case: Case) -> None:
    got = unpacked(raw(case["token"]), raw(case["fields"]))
    if case["events"] is None:
        assert got is None, case["says"]
        return
    assert got is not None, case["says"]
    assert [[place, list(fields)] for place, fields in zip(*got, strict=True)] == raw(case["events"])


@pytest.mark.parametrize(("script", "case"), cases("entry"))
def test_entries_are_read_and_copied_so(script: str, case: Case) -> None:
    if "copy" in case:
        given = case["copy"]
        assert copy_of(delivery(given).token, delivery(given).fields, given["attempt"], raw(given["reason"])) == raw(
            case["fields"]
        )
    elif "derive" in case:
        given = case["derive"]
        assert derived_id(delivery(given), given["group"], given["n"]) == raw(case["id"])
    else:
        seen = case["seen"]
        fields = raw(case["read"]["fields"])
        got = Delivery(raw(case["read"]["token"]), fields, None, attempt_of(fields))
        ctx = Context(got, Surroundings("orders", "billing", None, frozenset()), 0.0)
        assert (ctx.id, ctx.type, ctx.key, ctx.attempt, ctx.time.isoformat(), dict(ctx.headers), got.get(b"data")) == (
            seen["id"], seen["type"], seen["key"], seen["attempt"], seen["time"], seen["headers"], raw(seen["data"]),
        )  # fmt: skip


def test_every_script_has_vectors() -> None:
    assert set(SCRIPTS) <= {path.stem for path in GOLDEN.glob("*.json")}

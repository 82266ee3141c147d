"""Commands about a topic of several partitions: they are about all of them, or about the one that is named."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from headrace import backends, settings
from headrace.backends.contract import Record, Route, Settlement, Subscription, Verdict
from headrace.backends.redis.client import Client
from headrace.cli.exits import NO_SERVER
from tests.cli.shell import line_of, running, say
from tests.servers import Server


@pytest.fixture(params=[False, True], ids=["shared", "ordered"])
def spread(cli_server: Server, request: pytest.FixtureRequest) -> list[int]:
    """Topic `orders` of three partitions, whose 30 events are dead letters of group `billing`; how many are in each."""

    async def fill() -> None:
        backend = await backends.connect(settings.load(cli_server.url))
        route = Route("orders", partitions=3)
        await backend.publish(route, [Record(b"%d" % n, key=b"k%d" % n) for n in range(30)])
        feed = await backend.subscribe(Subscription(route, "billing", "w0", ordered=request.param))
        left = 30
        async with asyncio.timeout(10):
            while left:
                taken = await feed.take(left, 0.5)
                await feed.commit([Settlement(delivery, Verdict.DEAD, reason=b"no good") for delivery in taken])
                left -= len(taken)
        await feed.aclose()
        await backend.aclose()

    asyncio.run(fill())
    counts = [cli_server.command("XLEN", f"{{orders.{n}}}:dead:billing") for n in range(3)]
    assert sum(counts) == 30
    assert all(counts)
    return counts


def test_one_partition_of_a_group_is_reset_and_looked_at(spread: list[int]) -> None:
    del spread
    reset = say("groups", "orders.1", "--reset", "billing", "--to", "1-0", "--yes")
    assert (reset.code, reset.err) == (0, "")
    assert reset.out.startswith("group billing of orders.1 reads on from 1-0: ")
    [group] = json.loads(say("groups", "orders.1", "--json").out)
    assert (group["topic"], group["handled"]) == ("orders.1", 0)
    assert f": {group['unread']} unread" in reset.out
    assert group["unread"] > 0
    [whole] = json.loads(say("groups", "orders", "--json").out)
    assert whole["unread"] == group["unread"]
    for name in ("orders.3", "orders.x", "order.0"):
        refused = say("groups", name)
        assert refused.code == 4
        assert refused.err.startswith(f"headrace: no topic '{name}' on this server; topics: orders ")


def test_leases_of_one_partition(spread: list[int]) -> None:
    """A partition shows who has it, a topic who has each."""
    del spread
    shown = [json.loads(say("groups", name, "--json").out)[0] for name in ("orders", "orders.2")]
    if shown[0]["ordered"]:
        assert [[lease["partition"] for lease in group["leases"]] for group in shown] == [[0, 1, 2], [2]]
    assert say("groups", "orders.2").code == 0


@pytest.mark.parametrize("act", ["replay", "drop"])
def test_every_dead_letter_of_one_partition_and_then_of_all(spread: list[int], cli_server: Server, act: str) -> None:
    verb, yes = ("replayed", ()) if act == "replay" else ("dropped", ("--yes",))
    one = say("dead", act, "orders.1", "billing", "--all", *yes)
    assert one.out == f"{verb} {spread[1]} dead letters of group billing of orders.1\n", one.err
    all_ = say("dead", act, "orders", "billing", "--all", *yes)
    assert all_.out == f"{verb} {30 - spread[1]} dead letters of group billing of orders\n", all_.err
    assert [cli_server.command("XLEN", f"{{orders.{n}}}:dead:billing") for n in range(3)] == [0, 0, 0]
    assert say("ledger").code == 0
    again = say("dead", act, "orders", "billing", "--all", "--json", *yes)
    assert json.loads(again.out) == {"topic": "orders", "group": "billing", verb: 0, "absent": 0}


def test_all_dead_letters_are_shown_with_their_partition(spread: list[int]) -> None:
    """So that one of them can be replayed by its token."""
    rows = [json.loads(line) for line in say("dead", "show", "orders", "billing", "--all", "--json").out.splitlines()]
    assert [row["partition"] for row in rows] == [f"orders.{n}" for n in range(3) for _ in range(spread[n])]
    assert say("dead", "show", "orders", "billing", "--all").out.startswith("partition: orders.0\ntoken: ")
    last = rows[-1]
    assert say("dead", "replay", last["partition"], "billing", last["token"]).code == 0
    refused = say("dead", "replay", "orders", "billing", last["token"])
    assert (refused.code, "topic orders has 3 partitions: name one of them" in refused.err) == (4, True)
    unknown = say("dead", "drop", "orders", "nosuch", "--all", "--yes")
    assert unknown.code == 4
    assert unknown.err.startswith("headrace: no group 'nosuch' on topic 'orders.0'; groups: billing ")


def test_dead_letters_of_all_partitions_are_listed_by_time(spread: list[int]) -> None:
    """With what a later command takes: the partition, and the token, which is one only there."""
    rows = json.loads(say("dead", "list", "orders", "billing", "--json").out)
    assert sorted(row["data"] for row in rows) == list(range(30))
    times = [tuple(map(int, row["token"].split("-"))) for row in rows]
    assert times == sorted(times)
    assert [sum(row["partition"] == f"orders.{n}" for row in rows) for n in range(3)] == spread
    assert json.loads(say("dead", "list", "orders", "billing", "--json", "--count", "7").out) == rows[:7]
    shown = say("dead", "list", "orders", "billing", "--count", "2")
    head, first, _ = shown.out.splitlines()
    assert head.split() == ["partition", "token", "time", "id", "type", "attempt", "reason", "data"]
    partition, token = first.split()[:2]
    assert (partition, token) == (rows[0]["partition"], rows[0]["token"])
    assert shown.err.endswith(f"named with it: `headrace dead show {partition} billing {token}`\n")
    assert say("dead", "show", partition, "billing", token).code == 0
    one = json.loads(say("dead", "list", "orders.1", "billing", "--json").out)
    assert ("partition" in one[0], len(one)) == (False, spread[1])
    unknown = say("dead", "list", "orders", "nosuch")
    assert (unknown.code, unknown.err[:48]) == (4, "headrace: no group 'nosuch' on topic 'orders.0';")


def test_what_is_held_in_all_partitions(spread: list[int], cli_server: Server) -> None:
    """Oldest first, with the partition."""
    assert say("pending", "orders", "billing").err == "group billing of orders has nothing in hand\n"
    if json.loads(say("groups", "orders", "--json").out)[0]["ordered"]:
        return  # there nothing is held in Redis's sense
    assert say("groups", "orders", "--reset", "billing", "--to", "earliest", "--yes").code == 0
    for n in range(3):
        cli_server.command("XREADGROUP", "GROUP", "billing", "w1/0", "COUNT", 2, "STREAMS", f"orders.{n}", ">")
    rows = json.loads(say("pending", "orders", "billing", "--json").out)
    assert sorted(row["partition"] for row in rows) == [f"orders.{n}" for n in (0, 0, 1, 1, 2, 2)]
    times = [tuple(map(int, row["token"].split("-"))) for row in rows]
    assert times == sorted(times)
    shown = say("pending", "orders", "billing", "--count", "1").out.splitlines()
    assert [shown[0].split()[0], *shown[1].split()[:2]] == ["partition", rows[0]["partition"], rows[0]["token"]]
    assert len(shown) == 2
    del spread


def _datas(*words: str) -> list[int]:
    result = say("tail", *words, "--json")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert all(row["partition"].startswith("orders.") for row in rows)
    return [row["data"] for row in rows]


def test_tail_of_all_partitions_is_by_time(cli_server: Server) -> None:
    """The last ones, from a moment on, up to a count; more than a page of one of them."""
    for n in range(100):
        cli_server.command("XADD", f"orders.{n % 7 % 3}", f"{1_000 + n}-0", "data", str(n))
    cli_server.command("HSET", "headrace:topics", "orders", 3)
    for n in range(100, 1_500):
        cli_server.command("XADD", "orders.0" if n < 1_400 else f"orders.{n % 3}", f"{1_000 + n}-0", "data", str(n))
    assert _datas("orders") == list(range(1_490, 1_500))
    assert _datas("orders", "--count", "1450") == list(range(50, 1_500))
    assert _datas("orders", "--from", "-") == list(range(1_500))
    assert _datas("orders", "--from", "1970-01-01T00:00:01.090Z", "--count", "20") == list(range(90, 110))
    assert say("tail", "orders", "--count", "3").out.count("\n") == 3


def test_tail_of_dead_letters_of_all_partitions(spread: list[int]) -> None:
    listed = json.loads(say("dead", "list", "orders", "billing", "--json").out)
    dead = ("orders", "--dead", "--group", "billing")
    assert _datas(*dead, "--from", "-") == [row["data"] for row in listed]
    assert _datas(*dead, "--count", "4") == [row["data"] for row in listed[-4:]]
    del spread


def test_tail_follows_all_partitions(cli_server: Server) -> None:
    """What is shown at first is not shown again, nor what is older in another partition."""
    cli_server.command("HSET", "headrace:topics", "orders", 3)
    for n in range(3):
        cli_server.command("XADD", f"orders.{n}", "*", "data", str(n))
    words = ("tail", "orders", "--count", "1", "--follow", "--json")
    with running(*words, env={"HEADRACE_URL": cli_server.url}) as process:
        assert json.loads(line_of(process))["data"] == 2
        for n in range(3, 9):
            cli_server.command("XADD", f"orders.{n % 3}", "*", "data", str(n))
            assert json.loads(line_of(process))["data"] == n


def test_a_range_of_all_partitions_is_replayed(spread: list[int], cli_server: Server) -> None:
    """By times; a stream id is one of a partition."""
    replayed = say("replay", "orders", "billing", "--from", "-1h", "--to", "now")
    assert (replayed.code, replayed.err) == (0, "")
    assert replayed.out.startswith("replayed 30 events of orders to group billing in ")
    assert [cli_server.command("XLEN", f"{{orders.{n}}}:retry:billing") for n in range(3)] == spread
    assert say("ledger").code == 0
    for bounds in (("1-0", "now"), ("-1h", "9999999999999-0")):
        refused = say("replay", "orders", "billing", "--from", bounds[0], "--to", bounds[1])
        assert refused.code == 2
        assert "is the id of an event of one partition: name that, orders.0 to orders.2, or give times" in refused.err
    one = say("replay", "orders.1", "billing", "--from", "1-0", "--to", "now", "--json")
    assert json.loads(one.out)["replayed"] == spread[1]


def test_a_replay_of_partitions_that_is_cut_off_says_what_is_left(
    spread: list[int], cli_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that copy the rest, no more and no less, though time goes on."""
    call, moves = Client.call, itertools.count()

    async def cut(self: Client, name: str, keys: tuple[bytes, ...], *words: bytes | str | float) -> Any:
        if name == "move" and next(moves) == 1:
            cli_server.kill()
        return await call(self, name, keys, *words)

    monkeypatch.setattr(Client, "call", cut)
    result = say("replay", "orders", "billing", "--from", "-1h", "--to", "now")
    monkeypatch.undo()
    cli_server.start()
    assert result.code == NO_SERVER
    done, one, two, *_ = result.err.splitlines()
    assert done.startswith(f"replayed {spread[0]} events before it ended; to go on (of the next 100, ")
    assert [line.split()[:4] for line in (one, two)] == [
        ["headrace", "replay", f"orders.{n}", "billing"] for n in (1, 2)
    ]
    cli_server.command("XADD", "orders.2", "9999999999999-0", "data", "{}")  # later than `now` was
    for line in (one, two):
        assert say(*line.split()[1:], "--url", cli_server.url).code == 0
    assert [cli_server.command("XLEN", f"{{orders.{n}}}:retry:billing") for n in range(3)] == spread

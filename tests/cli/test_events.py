"""Events from and to the command line: publish, tail, dead, replay."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from typing import Any

import pytest

from headrace import backends, limits, settings
from headrace.backends.contract import Record, Route
from headrace.backends.redis.client import Client
from headrace.backends.redis.node import load_scripts
from headrace.cli.exits import NO_SERVER
from headrace.testing.faults import Fault, Proxy, command
from tests.cli.shell import Result, line_of, run, running, say
from tests.servers import Server, wait_for


def _tail(*words: str) -> list[dict[str, Any]]:
    result = say("tail", *words, "--json")
    assert (result.code, result.err) == (0, "")
    return [json.loads(line) for line in result.out.splitlines()]


def test_publish_one(cli_server: Server) -> None:
    """With everything that can be said about an event."""
    result = say(
        "publish",
        "orders",
        ' {"n": 1} ',
        "--type",
        "Order",
        "--key",
        "ann",
        "--id",
        "o-1",
        "--header",
        "source=shop",
        "--header",
        "Who=me=you",
    )
    assert result == Result(0, "published 1 event to orders\n", "")
    repeat = say("publish", "orders", "{}", "--id", "o-1")
    assert repeat == result  # as cli.md says
    [event] = _tail("orders")
    del event["token"]
    attributes = {"id": "o-1", "type": "Order", "source": "shop", "x-who": "me=you", "key": "ann"}
    assert event == {"attributes": attributes, "data": {"n": 1}}
    assert cli_server.command("XLEN", "orders") == 1


def test_publish_from_stdin_and_raw(cli_server: Server) -> None:
    """`-` is one event, whatever lines it has; raw bytes need not be JSON and come out unharmed."""
    env = {"HEADRACE_URL": cli_server.url}
    assert run("publish", "orders", "-", stdin=b'{\n"n": 1\n}\n', env=env).code == 0
    assert run("publish", "orders", "-", "--raw", stdin=b"\xff\x00\n", env=env).code == 0
    first, second = _tail("orders")
    assert first["data"] == {"n": 1}
    assert second["data_base64"] == "/wAK"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nope",), "data: not JSON"),
        (("",), "data: not JSON"),
        ((), "nothing to publish"),
        (("{}", "--lines"), "--lines reads stdin"),
        (("--lines", "--id", "x"), "--id names one event"),
        (("{}", "--header", "who"), "header: expected NAME=VALUE"),
        (("{}", "--header", "two words=x"), "header name: expected"),
        (("{}", "--id", ""), "id: expected text"),
        (("{}", "--key", "k" * (limits.key_bytes_max + 1)), "key: expected at most"),
        (("{}", "--delay", "soon"), "delay: expected seconds"),
        (("{}", "--delay=-1"), "delay_s: expected 0 to"),
        (("{}", "--delay", "nan"), "delay_s: expected 0 to"),
        (("{}", "--at", "2026-11-23T10:00:00"), "time: '2026-11-23T10:00:00' does not say its offset"),
        (("{}", "--at", "tomorrow"), "+01:00), or in so many seconds by --delay, got 'tomorrow'\n"),
        (("{}", "--at", "9999-01-01T00:00:00Z"), "at: expected at most a year ahead"),
        (("{}", "--at", "9999-12-31T23:59:59-14:00"), "time: expected the year 9999 or earlier"),
        (("{}", "--at", "-800000d"), "time: expected 1970 or later, got '-800000d'"),
        (("{}", "--at", f"-{'9' * 400}d"), "time: expected 1970 or later"),
        (("{}", "--at", "now", "--delay", "1"), "not allowed with argument"),
    ],
)
def test_publish_refuses(cli_server: Server, words: tuple[str, ...], said: str) -> None:
    """Before the server is asked; nothing is written."""
    result = say("publish", "orders", *words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err
    assert cli_server.command("EXISTS", "orders") == 0


def test_publish_refuses_what_is_too_large(cli_server: Server) -> None:
    """From an argument, from stdin and in a line."""
    env = {"HEADRACE_URL": cli_server.url}
    body = b'"' + b"x" * limits.body_bytes_max + b'"'
    whole = run("publish", "orders", "-", stdin=body, env=env)
    assert (whole.code, whole.err.startswith("headrace: data: an event holds at most 1,048,576 bytes; ")) == (2, True)
    line = run("publish", "orders", "--lines", stdin=b"1\n" + body + b"\n", env=env)
    assert line.code == 2
    assert "headrace: line 2: an event holds at most 1,048,576 bytes; " in line.err
    assert cli_server.command("XLEN", "orders") == 1


def test_publish_lines(cli_server: Server) -> None:
    """Many lines, in their order, empty ones passed over, the last without an end."""
    lines = b"".join(b'{"n":%d}\r\n\n' % n for n in range(25_000)) + b'{"n":25000}'
    result = run("publish", "orders", "--lines", "--json", stdin=lines, env={"HEADRACE_URL": cli_server.url})
    assert (result.code, result.err, json.loads(result.out)) == (0, "", {"topic": "orders", "published": 25_001})
    assert [event["data"]["n"] for event in _tail("orders", "--from", "-")] == list(range(25_001))


def test_publish_lines_up_to_a_bad_one(cli_server: Server) -> None:
    """It says which line, why, and what had been published."""
    result = run("publish", "orders", "--lines", stdin=b"1\n2\nthree\n4\n", env={"HEADRACE_URL": cli_server.url})
    assert (result.code, result.out) == (2, "")
    first, second = result.err.splitlines()
    assert first == "headrace: 2 events published to orders before it ended"
    assert second.startswith("headrace: line 3: not JSON")
    assert [event["data"] for event in _tail("orders")] == [1, 2]


def test_publish_lines_as_they_come(cli_server: Server) -> None:
    """A line is published when it is there, not when the input ends; Ctrl-C ends it at once."""
    with running("publish", "orders", "--lines", env={"HEADRACE_URL": cli_server.url}) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        wait_for(lambda: cli_server.command("XLEN", "orders") == 1, "the line is published", 20)
        process.send_signal(2)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert (
            process.stderr.read().decode()
            in {
                "headrace: 1 event published to orders before it ended\n",
                "headrace: at least 0 events published to orders before it ended; up to 1 more may have been\n",  # before its answer
            }
        )


def test_publish_lines_cut_off_in_a_call(cli_server: Server) -> None:
    """What has no answer yet may be there, and is said to."""
    publish = command("EVALSHA", load_scripts()["publish"].digest)
    with (
        Proxy(cli_server.url) as proxy,
        running("publish", "orders", "--lines", env={"HEADRACE_URL": proxy.url}) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(b"1\n" * 1_000)
        process.stdin.flush()
        wait_for(lambda: cli_server.command("XLEN", "orders") == 1_000, "the lines are published", 20)
        proxy.fail(Fault.HOLD_REPLY, 1, publish)
        process.stdin.write(b"2\n" * 7)
        process.stdin.flush()
        assert proxy.fired.wait(20)
        process.send_signal(2)
        assert process.wait(20) == 130
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert cli_server.command("XLEN", "orders") == 1_007
    assert said == ("headrace: at least 1,000 events published to orders before it ended; up to 7 more may have been\n")


def test_publish_delayed(cli_server: Server) -> None:
    """It waits on the server and counts as delayed."""
    assert say("publish", "orders", "{}", "--delay", "3600").code == 0
    assert say("publish", "orders", "{}", "--at", "9999999999999-0").code == 2
    [topic] = json.loads(say("topics", "--json").out)
    assert (topic["events"], topic["delayed"]) == (0, 1)
    assert cli_server.running


def test_publish_is_refused_by_a_wrong_key(cli_server: Server) -> None:
    """A key of that name with other data."""
    cli_server.command("SET", "orders", "mine")
    result = say("publish", "orders", "{}")
    assert (result.code, result.out) == (4, "")
    assert "holds another type of data" in result.err


SCREENS = {
    "tail orders --count 2": """\
TIME order-5 Order ann {"n":5}
TIME order-6 Order ann {"n":6}
-> 0""",
    "tail orders --from - --count 1": """\
TIME order-0 Order ann {"n":0}
-> 0""",
    "tail orders --from -1h --count 1": """\
TIME order-0 Order ann {"n":0}
-> 0""",
    "tail orders --from now": "\n-> 0".strip(),
    "tail orders --from -800000d --count 1": """\
TIME order-0 Order ann {"n":0}
-> 0""",
    "tail orders --count 99999999999999999999": """\
headrace: number: expected at most 1,000,000,000,000, got '99999999999999999999'
-> 2""",
    "tail orders --from tomorrow": """\
headrace: time: expected a time with its offset (2026-11-23T10:00:00+01:00), one relative to now (-30s, -15m, -2h, -1d), `now`, \
or a stream id, got 'tomorrow'
-> 2""",
    "tail nosuch": """\
headrace: no topic 'nosuch' on this server; topics: orders (see `headrace topics`)
-> 4""",
    "tail orders --dead": """\
headrace: --dead and --group belong together: `headrace tail TOPIC --dead --group GROUP`
-> 2""",
    "tail orders --dead --group billing": """\
TIME order-2 Order ann [bad amount] {"n":2}
TIME order-3 Order ann [bad amount] {"n":3}
-> 0""",
    "dead list orders billing": """\
token time id type attempt reason data
TOKEN TIME order-2 Order 1 bad amount {"n":2}
TOKEN TIME order-3 Order 1 bad amount {"n":3}
-> 0""",
    "dead show orders billing": """\
headrace: dead show: expected tokens, as printed by `headrace dead list`, or --all
-> 2""",
    "dead show orders billing 1-1": """\
headrace: group billing of orders has no dead letter 1-1: it was replayed or dropped, or never was
-> 4""",
    "dead replay orders billing soon": """\
headrace: id: expected a stream id like TOKEN, got 'soon'
-> 2""",
    "dead replay orders billing 1-1": """\
replayed 0 dead letters of group billing of orders; 1 not there any more
-> 0""",
    "dead replay orders billing --all": """\
replayed 2 dead letters of group billing of orders
-> 0""",
    "dead drop orders billing --all": """\
headrace: every dead letter of group billing of orders would be deleted for good; nothing was done: say --yes if that is what you want
-> 2""",
    "dead drop orders billing --all --yes": """\
dropped 2 dead letters of group billing of orders
-> 0""",
    "replay orders billing --from -1h --to now": """\
replayed 7 events of orders to group billing in SECONDS
-> 0""",
    "replay orders billing --from now --to -1h": """\
headrace: range: --from now is later than --to -1h
-> 2""",
    "replay orders nosuch --from -1h --to now": """\
headrace: no group 'nosuch' on topic 'orders'; groups: billing (see `headrace groups orders`)
-> 4""",
}


@pytest.mark.parametrize("line", SCREENS)
def test_screen(orders: Server, line: str) -> None:
    """The whole of what a person sees; whatever was done, the ledger balances."""
    del orders
    assert say(*line.split()).screen == SCREENS[line]
    assert say("ledger").code == 0


def test_dead_show(orders: Server) -> None:
    """Everything about a dead letter, for people and for scripts."""
    [letter, _] = json.loads(say("dead", "list", "orders", "billing", "--json").out)
    assert letter["reason"] == "bad amount"
    assert letter["data"] == {"n": 2}
    shown = say("dead", "show", "orders", "billing", letter["token"])
    assert shown.screen == (
        'token: TOKEN\ntime: TIME\nid: order-2\nattempt: 1\norigin: TOKEN\nreason: bad amount\ntype: Order\nkey: ann\n{\n"n": 2\n}\n-> 0'
    )
    assert json.loads(say("dead", "show", "orders", "billing", letter["token"], "--json").out) == letter
    assert say("dead", "drop", "orders", "billing", letter["token"], "--yes").code == 0
    assert orders.command("XLEN", "{orders}:dead:billing") == 1


def test_data_that_is_nested_too_deeply(orders: Server) -> None:
    """It is handled as data that is not JSON, and what is beside it is shown; also just before the depth that can be read."""
    for depth in (*range(900, 1_010, 2), 5_000, 200_000):
        orders.command(
            "XADD", "{orders}:dead:billing", "*", "id", depth, "reason", "r", "data", "[" * depth + "]" * depth
        )
    letters = json.loads(say("dead", "list", "orders", "billing", "--json").out)
    assert [letter.get("data") for letter in letters[:2]] == [{"n": 2}, {"n": 3}]
    assert all(("data" in letter) != ("data_base64" in letter) for letter in letters)
    assert base64.b64decode(letters[-1]["data_base64"]) == b"[" * 200_000 + b"]" * 200_000
    for words in (("list",), ("show", "--all"), ("show", "--all", "--json")):
        assert say("dead", words[0], "orders", "billing", *words[1:]).code == 0
    assert say("tail", "orders", "--dead", "--group", "billing", "--json").code == 0
    refused = say("publish", "orders", "[" * 5_000 + "]" * 5_000)
    assert refused == Result(2, "", "headrace: data: nested too deeply to be read; --raw publishes it as it is\n")


def test_text_of_others_cannot_move_the_cursor(cli_server: Server) -> None:
    """Escape sequences and line ends in events are shown, not obeyed."""
    assert say("publish", "orders", r'"\u001b[31m"', "--type", "red\x1b[31m\n").code == 0
    cli_server.command("XADD", "orders", "*", "data", b"\x1b]0;title\x07\n\xff")
    result = say("tail", "orders")
    assert result.out.count("\n") == 2
    assert "\x1b" not in result.out
    assert r"\x1b]0;title\x07\n\xff" in result.out


def test_tail_finds_the_last_of_many(cli_server: Server) -> None:
    """Spread over time and in bursts, whatever the number wanted."""
    cli_server.command("HSET", "headrace:topics", "orders", 1)
    for n, ms in enumerate([1, 2, 1_000_000, 1_000_001, *[2_000_000_000] * 50, 2_000_000_001]):
        cli_server.command("XADD", "orders", f"{ms}-{n}", "data", str(n))
    for wanted in (1, 2, 10, 51, 52, 53, 54, 55, 100):
        assert [event["data"] for event in _tail("orders", "--count", str(wanted))] == list(
            range(max(55 - wanted, 0), 55)
        )
    cli_server.command("XDEL", "orders", "2000000001-54")
    assert [event["data"] for event in _tail("orders", "--count", "2")] == [52, 53]


@pytest.mark.parametrize("follow", [False, True])
def test_tail_of_what_never_stops_growing(orders: Server, monkeypatch: pytest.MonkeyPatch, *, follow: bool) -> None:
    """As much as is read comes in addition, each time; it ends all the same, with what was there when it began."""
    more = "for _ = 1, 110 do redis.call('XADD', KEYS[1], '*', 'data', '{}') end"
    call, reads = Client.command, itertools.count()

    async def busy(self: Client, *words: bytes | str | float) -> Any:
        if words[0] == "XRANGE":
            assert next(reads) < 100, "it reads on and on"
            orders.command("EVAL", more, 1, words[1])
        return await call(self, *words)

    monkeypatch.setattr(Client, "command", busy)
    if follow:
        assert len(_tail("orders", "--from", "-", "--count", "500", "--follow")) == 500
        return
    assert [event["data"]["n"] for event in _tail("orders", "--count", "3")] == [4, 5, 6]
    dead = ("orders", "--dead", "--group", "billing")
    assert [event["data"]["n"] for event in _tail(*dead)] == [2, 3]
    count = orders.command("XLEN", "orders")
    assert len(_tail("orders", "--from", "-")) == count
    count = orders.command("XLEN", "{orders}:dead:billing")
    assert len(_tail(*dead, "--from", "-")) == count


def test_tail_of_packed_events(cli_server: Server) -> None:
    """Each with its time, though they share an entry."""

    async def publish() -> None:
        backend = await backends.connect(settings.load(cli_server.url))
        await backend.publish(Route("orders", packing=10), [Record(b"%d" % n) for n in range(10)])
        await backend.aclose()

    asyncio.run(publish())
    assert cli_server.command("XLEN", "orders") == 1
    assert [event["data"] for event in _tail("orders", "--count", "3")] == [7, 8, 9]
    assert not say("tail", "orders", "--count", "1").out.startswith("1970")


def test_tail_follows_over_a_restart(orders: Server) -> None:
    """New events come as they are published, also after the server went away for a while."""
    with running("tail", "orders", "--count", "1", "--follow", "--json", env={"HEADRACE_URL": orders.url}) as process:
        assert json.loads(line_of(process))["data"] == {"n": 6}
        assert say("publish", "orders", "7").code == 0
        assert json.loads(line_of(process))["data"] == 7
        orders.kill()
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"headrace: ")
        orders.start()
        assert say("publish", "orders", "8").code == 0
        assert json.loads(line_of(process))["data"] == 8


def test_replay_of_a_range(orders: Server) -> None:
    """By ids, both ends included."""
    events = _tail("orders")
    result = say("replay", "orders", "billing", "--from", events[1]["token"], "--to", events[3]["token"], "--json")
    assert json.loads(result.out) == {
        "topic": "orders",
        "group": "billing",
        "first": events[1]["token"],
        "last": events[3]["token"],
        "replayed": 3,
    }
    assert orders.command("XLEN", "{orders}:retry:billing") == 3


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_replay_that_is_cut_off_says_where_to_go_on(
    orders: Server, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """The server dies before the next hundred; what is said to be copied is, and nothing else."""
    for n in range(2_000):
        orders.command("XADD", "orders", "*", "id", f"x{n}", "data", "{}")
    call, moves = Client.call, itertools.count()

    async def cut(self: Client, name: str, keys: tuple[bytes, ...], *words: bytes | str | float) -> Any:
        if name == "move" and next(moves) == calls:
            orders.kill()
        return await call(self, name, keys, *words)

    monkeypatch.setattr(Client, "call", cut)
    result = say("replay", "orders", "billing", "--from", "0-0", "--to", "now")
    assert result.code == NO_SERVER
    monkeypatch.undo()
    orders.start()
    copied = orders.command("XLEN", "{orders}:retry:billing")
    assert copied == calls * 100
    said = f"replayed {copied} events before it ended; to go on: --from "
    assert said in result.err
    onward = result.err.partition(said)[2].split()[0]
    again = say("replay", "orders", "billing", "--from", onward, "--to", "now", "--url", orders.url)
    assert again.code == 0
    assert orders.command("XLEN", "{orders}:retry:billing") == 2_007


def test_dead_replay_of_many_does_not_run_for_ever(orders: Server) -> None:
    """More letters than one call moves."""
    for n in range(2_500):
        orders.command("XADD", "{orders}:dead:billing", "*", "id", f"x{n}", "reason", "r", "data", "{}")
    start = time.monotonic()
    result = say("dead", "replay", "orders", "billing", "--all")
    assert result == Result(0, "replayed 2,502 dead letters of group billing of orders\n", "")
    assert time.monotonic() - start < 20

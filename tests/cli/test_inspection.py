"""What is there and where it stands: topics, groups, pending, ledger, doctor; whole screens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import output
from tests.cli.shell import run, say
from tests.servers import Server

COUNTS = {
    "published": 7,
    "replayed": 0,
    "handled": 2,
    "dead": 2,
    "dropped": 0,
    "pending": 1,
    "unread": 2,
    "delayed": 0,
    "retrying": 0,
}

SCREENS = {
    "topics": """\
topic partitions events published delayed size groups
orders 1 7 7 0 SIZE billing
-> 0""",
    "groups": """\
topic group mode unread pending delayed retrying dead workers oldest
orders billing shared 2 1 0 0 2 0 SECONDS
-> 0""",
    "groups nosuch": """\
headrace: no topic 'nosuch' on this server; topics: orders (see `headrace topics`)
-> 4""",
    "groups orders --reset billing": """\
headrace: --reset needs a topic and a place: `headrace groups TOPIC --reset GROUP --to earliest|latest|ID --yes`
-> 2""",
    "groups orders --reset billing --to soon --yes": """\
headrace: id: expected a stream id like TOKEN, got 'soon'
-> 2""",
    "groups orders --reset billing --to earliest": """\
headrace: group billing of orders would forget its place, what it has in hand, and its counts; nothing was done: say --yes if that \
is what you want
-> 2""",
    "groups orders --reset billing --to earliest --yes": """\
group billing of orders reads on from earliest: 7 unread
-> 0""",
    "pending orders billing": """\
token time worker idle deliveries
TOKEN TIME w1 SECONDS 1
-> 0""",
    "pending orders nosuch": """\
headrace: no group 'nosuch' on topic 'orders'; groups: billing (see `headrace groups orders`)
-> 4""",
    "ledger": """\
topic group published replayed handled dead dropped pending unread delayed retrying balance
orders billing 7 0 2 2 0 1 2 0 0 exact
-> 0""",
    "ledger orders nosuch": """\
headrace: topic orders has no group nosuch; its groups: billing
-> 4""",
}


@pytest.mark.parametrize("line", SCREENS)
def test_screen(orders: Server, line: str) -> None:
    """The whole of what a person sees."""
    del orders
    assert say(*line.split()).screen == SCREENS[line]


def _objects(*words: str, code: int = 0) -> Any:
    result = say(*words, "--json")
    assert (result.code, result.err) == (code, "")
    return json.loads(result.out)


def test_json_has_the_fields_of_the_contract(orders: Server) -> None:
    """Scripts rely on these names."""
    del orders
    [topic] = _objects("topics")
    size = topic.pop("bytes")
    assert size > 0
    assert topic == {
        "topic": "orders",
        "events": 7,
        "published": 7,
        "delayed": 0,
        "groups": ["billing"],
        "partitions": 1,
    }
    [group] = _objects("groups", "orders")
    assert group.pop("oldest_s") > 0
    assert group == {"topic": "orders", "group": "billing", "ordered": False, "workers": 0, **COUNTS}
    [row] = _objects("ledger", "orders", "billing")
    assert row.pop("oldest_s") > 0
    assert row == {"topic": "orders", "group": "billing", "ordered": False, "workers": 0, "missing": 0, **COUNTS}
    [held] = _objects("pending", "orders", "billing")
    assert held.keys() == {"token", "worker", "idle_s", "deliveries"}


def test_nothing_there(cli_server: Server, tmp_path: Path) -> None:
    """Empty answers are empty on stdout, with a remark beside it, which names the server: another one may have been meant."""
    env = {"HEADRACE_HOME": str(tmp_path / "home")}
    for command in ("topics", "groups", "ledger"):
        assert _objects(command) == []
        result = say(command)
        assert (result.code, result.out) == (0, "")
        what = "topics" if command == "topics" else "groups"
        assert result.err.startswith(f"no {what} yet on {cli_server.url}: ")
        assert result.err.count("\n") == 1
        result = run(command, env=env)
        assert result.err.startswith(f"no {what} yet on the embedded server in {tmp_path / 'home'}: ")


def test_the_server_is_named_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    output.no("groups", "redis://me:hunter2@here:6379/0", "wait")
    assert capsys.readouterr().err == "no groups yet on redis://***@here:6379/0: wait\n"


def test_one_partition(orders: Server) -> None:
    del orders
    assert say("partitions", "orders", "1").out == "topic orders has 1 partition\n"


def test_ledger_that_does_not_balance(orders: Server) -> None:
    """Another tool acknowledged an event that nobody handled: the answer is no, with one sentence that says what it means."""
    [held] = _objects("pending", "orders", "billing")
    orders.command("XACK", "orders", "billing", held["token"])
    result = say("ledger")
    assert result.code == 1
    assert result.out.endswith("  1 missing\n")
    assert result.err.startswith("headrace: 1 event of orders never reached a known end in group billing: ")
    assert result.err.count("\n") == 1
    [row] = _objects("ledger", code=1)
    assert row["missing"] == 1


def test_doctor_of_a_safe_server(cli_server: Server) -> None:
    """The whole gate, and what may still be lost."""
    result = say("doctor")
    assert result.code == 0
    assert result.screen.startswith("server: valkey ")
    assert "\nok appendfsync always always\n" in result.screen
    assert "\nSafe at level fsync. " in result.screen
    report = _objects("doctor")
    assert report.keys() == {"server", "version", "mode", "role", "url", "level", "findings", "loss_window"}
    assert report["findings"][0].keys() == {"name", "ok", "severity", "found", "wanted", "fix"}
    assert cli_server.running


def test_doctor_of_a_forgetful_server() -> None:
    """A violation is said with its fix, and the answer is no; the level `relaxed` accepts it."""
    with Server("valkey", appendfsync="everysec") as server:
        result = say("doctor", "--url", server.url)
        relaxed = say("doctor", "--url", server.url, "--durability", "relaxed")
        refused = say("publish", "orders", "{}", "--url", server.url)
    assert result.code == 1
    assert "\nVIOLATION appendfsync everysec always\n" in result.screen
    assert "\nappendfsync: CONFIG SET appendfsync always\n" in result.screen
    assert "\nNOT SAFE at level fsync: 1 violation; workers and publishers refuse to start.\n" in result.screen
    assert relaxed.code == 0
    assert refused.code == 2
    assert "CONFIG SET appendfsync always" in refused.err
    assert "\nhint: `headrace doctor`" in refused.err


def test_groups_reset_to_latest(orders: Server) -> None:
    """The group reads on from there and its ledger begins anew."""
    del orders
    [group] = _objects("groups", "orders", "--reset", "billing", "--to", "latest", "--yes")
    assert (group["unread"], group["handled"], group["pending"]) == (0, 0, 0)
    assert say("ledger").code == 0

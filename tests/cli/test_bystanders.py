"""Publishing from the command line looks at its own topic: other topics cost it nothing, and need no rights."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.shell import Result, say
from tests.servers import Server, require

WIRE = Path(__file__).parents[2] / "docs" / "reference" / "wire.md"


def _commands(server: Server) -> int:
    stats = server.command("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r"cmdstat_\S+:calls=(\d+)", stats))


def test_other_topics_cost_nothing(cli_server: Server) -> None:
    """As many commands beside twenty topics of 64 partitions as on a server of its own."""
    assert say("publish", "orders", "{}").code == 0
    before = _commands(cli_server)
    assert say("publish", "orders", "{}").code == 0
    alone = _commands(cli_server) - before
    for n in range(20):
        cli_server.command("HSET", "headrace:topics", f"t{n}", 64)
    before = _commands(cli_server)
    assert say("publish", "orders", "{}").code == 0
    assert _commands(cli_server) - before <= alone + 1  # asking costs one
    assert alone < 100


def test_the_rights_of_a_worker_suffice() -> None:
    """Those of the reference, which open its own topics to it; with partitions, too."""
    rights = re.findall(r"ACL SETUSER worker [^`]*", WIRE.read_text(encoding="utf-8"))[0].split()
    require("valkey")
    with Server("valkey") as server:
        server.command(*rights, "~orders.*", "~{orders.*")
        url = server.url.replace("unix://", "unix://worker:secret@")
        assert say("publish", "orders", "{}", "--url", url) == Result(0, "published 1 event to orders\n", "")
        server.command("HSET", "headrace:topics", "invoices", 1, "orders", 3)
        refused = say("publish", "orders", "{}", "--url", url)
        assert (refused.code, "has 3 partitions" in refused.err) == (2, True)
        assert say("publish", "orders", "{}", "--key", "ann", "--url", url).code == 0
        assert sum(server.command("EXISTS", f"orders.{n}") for n in range(3)) == 1

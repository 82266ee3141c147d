"""The campaign of faults runs, ends clean, and can be told what to do; long runs are for `make faults`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from faults import campaign, history, mutants
from faults.world import Setup
from tests.servers import Server, require

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_round_is_clean() -> None:
    require("valkey")
    words = [sys.executable, "-m", "faults", "--minutes", "0.01", "--faults", "6", "--site", "valkey", "--seed", "5"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("CLEAN: 6 faults")
    assert run.stderr == "", "it is quiet in a pipe"


def test_a_schedule_follows_from_its_seed_and_the_bag_goes_on(tmp_path: Path) -> None:
    of = campaign.available(Setup(tmp_path, None, None, None), "valkey")
    one = campaign.schedule(7, 0, "valkey", of, 10)
    assert one == campaign.schedule(7, 0, "valkey", of, 10)
    assert one != campaign.schedule(8, 0, "valkey", of, 10)
    rounds = [n for n, site in enumerate(campaign.SITES) if site == "valkey"]
    both = [kind.name for n in rounds for _, kind, _ in campaign.schedule(7, n, "valkey", of, len(of) // 2)]
    assert len(set(both)) == len(both), "every kind once before any comes again"


def test_every_site_has_packed_and_plain_rounds() -> None:
    cycle = range(2 * len(campaign.SITES))
    assert {(campaign.SITES[n % len(campaign.SITES)], campaign.packing(n)) for n in cycle} == {
        (site, packing) for site in campaign.SITES for packing in ("none", "batch")
    }


def test_what_is_read_of_a_topic_that_grew_twice_and_is_packed(tmp_path: Path) -> None:
    require("valkey")
    (tmp_path / "journal").mkdir()
    keys = "abcdefghijklmnopqrst"
    with Server("valkey") as server:
        for number, first in ((5, 6), (1, 0), (9, 8)):
            for key in keys:  # so many that the server lists some in each order
                server.command("RPUSH", f"{{orders.{number}}}:ledger:{key}", first, first + 1)
        one = [b'{"key":"a","n":%d}' % n for n in range(3)]
        server.command("XADD", "orders.1", "*", "id", "p.1.1", "data", one[0])
        packed = ("id", "p.1.2", "events", 2, "before", 0, "sizes", b"[%d,%d]" % (len(one[1]), len(one[2])))
        server.command("XADD", "orders.1", "*", *packed, "data", one[1] + one[2])
        with redis.Redis(unix_socket_path=server.socket) as client:
            found = history.collect([client], "", tmp_path, [], forgetful=False)
    assert found.log == [("a", 0), ("a", 1), ("a", 2)]
    assert found.ledger == {key: [0, 1, 6, 7, 8, 9] for key in keys}


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_mutants_follow_the_code(mutant: mutants.Mutant, tmp_path: Path) -> None:
    mutants.build(mutant, tmp_path)

"""The campaign of faults runs, ends clean, and can be told what to do; long runs are for `make faults`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from faults import campaign, mutants
from faults.world import Setup
from tests.servers import require

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


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_mutants_follow_the_code(mutant: mutants.Mutant, tmp_path: Path) -> None:
    mutants.build(mutant, tmp_path)

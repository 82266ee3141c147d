"""Records what an event costs now: python -m tests.budget --reason "why"."""

from __future__ import annotations

import argparse
import sys

from tests.budget.count import PATHS, measure
from tests.budget.figures import FILE, VERSION, Figures, load, save


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.budget", description=__doc__)
    parser.add_argument("--reason", required=True, help="kept beside the figures, for whoever asks later")
    reason = parser.parse_args().reason
    figures = load() if FILE.exists() else Figures(reason, {})
    figures.reason = reason
    before = figures.costs.get(VERSION, {})
    figures.costs[VERSION] = {name: measure(name) for name in PATHS}
    save(figures)
    for name, cost in figures.costs[VERSION].items():
        old = f" (was {before[name].instructions:g})" if name in before else ""
        sys.stdout.write(
            f"{name}: {cost.instructions:g} instructions{old}, {cost.commands:g} commands, "
            f"{cost.bytes_in:g} bytes in, {cost.bytes_out:g} bytes out\n"
        )


if __name__ == "__main__":
    main()

"""Records what an event costs now, on this version of Python: python -m tests.budget --reason "why"."""

from __future__ import annotations

import argparse
import sys

from tests.budget.count import PATHS, measure
from tests.budget.figures import VERSION, Figures, load, save


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.budget", description=__doc__)
    parser.add_argument("--reason", required=True, help="kept beside the figures, for whoever asks later")
    reason: str = parser.parse_args().reason.strip()
    if not reason:
        parser.error("--reason: say why an event costs more, or less, than before")
    figures = load()
    before = figures[VERSION].costs if VERSION in figures else {}
    costs = {name: measure(name) for name in PATHS}
    figures[VERSION] = Figures(reason, costs)
    save(dict(sorted(figures.items())))
    for name, cost in costs.items():
        old = f" (was {before[name].instructions:g})" if name in before else ""
        sys.stdout.write(
            f"{name}: {cost.instructions:g} instructions{old}, {cost.commands:g} commands, "
            f"{cost.bytes_in:g} bytes in, {cost.bytes_out:g} bytes out\n"
        )


if __name__ == "__main__":
    main()

"""What every backend must do, as scenarios that run against any of them. No test framework is needed.

    from headrace.testing.conformance import run

    reports = await run(my_harness)          # my_harness() -> async context manager that gives a Harness on an empty server

With pytest: parametrize over `SCENARIOS` and call `check(scenario, my_harness)`. The scenarios are the readable form of
`headrace.backends.contract`: each one states a promise in its docstring and shows the calls that it is about.
"""

from headrace.testing.conformance.harness import Harness, HarnessFactory
from headrace.testing.conformance.scenario import NotRun, Outcome, Report, Scenario, Violation
from headrace.testing.conformance.suite import SCENARIOS, check, run

__all__ = [
    "SCENARIOS",
    "Harness",
    "HarnessFactory",
    "NotRun",
    "Outcome",
    "Report",
    "Scenario",
    "Violation",
    "check",
    "run",
]

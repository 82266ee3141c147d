"""What the lint finds, and how it is told: to people, to scripts, to GitHub, and as SARIF."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Final, Literal

from msgspec import Struct

from headrace.errors import ConfigurationError
from headrace.version import VERSION

TITLES: Final = {
    "HR301": "exactly-once is claimed where it does not hold",
    "HR302": "a licence is claimed that the server may not have",
    "HR303": "events do not fit into memory",
    "HR304": "order is asked for and not kept",
    "HR305": "a stream grows without a bound",
    "HR306": "failed events have nowhere to go",
    "HR307": "events are reclaimed while they are being handled",
    "HR308": "the server may evict events",
    "HR309": "a command that the server does not know",
    "HR310": "scaled to zero with events in hand",
    "HR311": "a blocking read that the client gives up",
    "HR312": "events are not kept for as long as is required",
    "HR313": "a condition that nothing can measure",
    "HR314": "the server may lose what it has acknowledged",
    "HR315": "the requirements rule the event system out",
}
"""By code. Each has a page: `headrace explain HR301`."""


class Finding(Struct, frozen=True):
    """One claim that does not agree with the facts."""

    code: str
    severity: Literal["error", "warning"]
    path: str
    line: int
    message: str
    """What is wrong, and what to do."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code} {self.severity}: {self.message}"


def page(code: str) -> str:
    """The explanation of a code, as Markdown. Raises ConfigurationError."""
    if code not in TITLES:
        raise ConfigurationError(f"no such code {code!r}; there are {', '.join(TITLES)}")
    return resources.files("headrace.stack").joinpath("pages", f"{code}.md").read_text(encoding="utf-8")


def github(finding: Finding) -> str:
    """As GitHub Actions show it beside the line."""
    message = finding.message.replace("%", "%25").replace("\n", "%0A")
    return f"::{finding.severity} file={finding.path},line={finding.line},title={finding.code}::{message}"


def sarif(findings: Sequence[Finding]) -> dict[str, Any]:
    """As SARIF 2.1.0."""
    rules = [{"id": code, "shortDescription": {"text": title}} for code, title in TITLES.items()]
    results = [
        {
            "ruleId": f.code,
            "level": f.severity,
            "message": {"text": f.message},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": f.path},
                        "region": {"startLine": f.line},
                    }
                }
            ],
        }
        for f in findings
    ]
    driver = {"name": "headrace stack lint", "version": VERSION, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }

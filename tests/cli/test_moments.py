"""Times and places as people say them."""

from __future__ import annotations

import time

import pytest

from headrace.cli import moments
from headrace.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-23T10:00:00Z", 1_795_428_000_000),
        ("2026-11-23T11:00:00+01:00", 1_795_428_000_000),
        ("2026-11-23T10:00:00.123+00:00", 1_795_428_000_123),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_absolute(text: str, milliseconds: int) -> None:
    """ISO 8601 with an offset."""
    assert moments.instant_ms(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "ago_s"), [("now", 0), ("-30s", 30), ("-15m", 900), ("-2h", 7_200), ("-1.5d", 129_600)]
)
def test_relative(text: str, ago_s: float) -> None:
    """To this machine's clock."""
    before = time.time()
    assert before - ago_s - 0.002 <= moments.instant_ms(text) / 1_000 <= time.time() - ago_s + 0.002


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:00:00",
        "2026-11-23",
        "20261123",
        "yesterday",
        "-1w",
        "+1h",
        "1h",
        "",
        "1-2-3",
        "1969-12-31T23:59:59Z",
    ],
)
def test_refused(text: str) -> None:
    """Naive times too: they would mean another moment on another machine."""
    with pytest.raises(ConfigurationError, match=r"^time: "):
        moments.instant_ms(text)


def test_ranges_and_places() -> None:
    """Bounds include every entry of their millisecond; the place before an entry is the one to read after."""
    assert moments.first("1970-01-01T00:00:01Z") == "1000-0"
    assert moments.last("1970-01-01T00:00:01Z") == "1000-18446744073709551615"
    assert moments.first("5-3") == moments.last("5-3") == "5-3"
    assert moments.before("5-3") == "5-2"
    assert moments.before("5-0") == "4-18446744073709551615"
    assert moments.before("0-0") == "-"
    assert moments.token_ms("5-3") == 5
    with pytest.raises(ConfigurationError, match=r"^id: "):
        moments.before("soon")


def test_said() -> None:
    """UTC, to the millisecond; where the calendar ends, the milliseconds."""
    assert moments.said(1_795_428_000_123) == "2026-11-23 10:00:00.123Z"
    assert moments.said(99_999_999_999_999_999) == "99999999999999999ms"
    assert moments.said((1 << 64) - 1) == "18446744073709551615ms"

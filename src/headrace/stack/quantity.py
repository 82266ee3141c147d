"""Rates, sizes and durations as people write them: `2000/s`, `600B`, `6h`."""

from __future__ import annotations

import re
from typing import ClassVar, Final, Self

from headrace.errors import ConfigurationError

_NUMBER: Final = r"(\d[\d_]*(?:\.\d+)?) ?"
_THOUSANDS: Final = {"": 1.0, "k": 1e3, "m": 1e6}
_PER: Final = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZES: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_TIMES: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


class Rate(float):
    """Events per second."""

    pattern: ClassVar[str] = rf"^{_NUMBER}([kKmM]?)/(s|min|h|d)$"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2000/s`, `5k/s`, `90/min`. Raises ConfigurationError."""
        number, (thousands, per) = _matched(cls.pattern, text, "a rate such as 2000/s, 5k/s or 90/min")
        return cls(number * _THOUSANDS[thousands.lower()] / _PER[per])

    def __str__(self) -> str:
        if self >= 1 or not self:
            return f"{float(self):,.0f}/s"
        return f"{self * 60:,.1f}/min" if self * 60 >= 1 else f"{self * 86_400:,.0f}/d"


class Size(int):
    """Bytes."""

    pattern: ClassVar[str] = rf"^{_NUMBER}([kKmMgGtT]?i?[bB])$"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`600B`, `4KB`, `16GiB`. Raises ConfigurationError."""
        number, (unit,) = _matched(cls.pattern, text, "a size such as 600B, 4KB or 16GiB")
        return cls(round(number * _SIZES[unit.lower()]))

    def __str__(self) -> str:
        value, unit = float(self), "B"
        for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
            if value < 1_024:  # noqa: PLR2004 - the factor between the units
                break
            value, unit = value / 1_024, larger
        return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"  # noqa: PLR2004 - digits that mean something


class Duration(float):
    """Seconds."""

    pattern: ClassVar[str] = rf"^{_NUMBER}(ms|s|min|m|h|d|w)$"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`90s`, `6h`, `7d`, `2w`. Raises ConfigurationError."""
        number, (unit,) = _matched(cls.pattern, text, "a duration such as 90s, 6h, 7d or 2w")
        return cls(number * _TIMES[unit])

    def __str__(self) -> str:
        for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
            if self >= length:
                return f"{self / length:.3g} {unit}"
        return f"{float(self):.3g} s"


Quantity = Rate | Size | Duration


def _matched(pattern: str, text: str, expected: str) -> tuple[float, list[str]]:
    found = re.fullmatch(pattern, text.strip())
    if found is None:
        raise ConfigurationError(f"expected {expected}, got {text!r}")
    number, *rest = found.groups()
    return float(number.replace("_", "")), rest

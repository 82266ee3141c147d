"""What one event costs a server: measured by `headrace stack calibrate`, kept with date and machine."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from headrace.errors import ConfigurationError

_OURS: Final = "facts.toml"


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one server, with events of a small and of a large body."""

    measured_on: str
    """Date."""
    server: str
    machine: str
    small_body_bytes: int
    large_body_bytes: int
    small_memory_bytes: float
    """Of an event with a small body, in the stream."""
    large_memory_bytes: float
    small_file_bytes: float
    """What publishing and handling it by one group adds to the append-only file; 0 if there is none."""
    large_file_bytes: float
    publish_cpu_us: float
    """Of the server's main thread, for an event with a small body that is published in a batch."""
    handle_cpu_us: float
    """Of the server's main thread, for reading and committing it, in one group."""
    worker_per_s: float
    """Events that one worker process reads and commits in a second."""

    def memory_bytes(self, body_bytes: float) -> float:
        """Of an event in the stream: a line through the two that were measured."""
        return self._between(self.small_memory_bytes, self.large_memory_bytes, body_bytes)

    def file_bytes(self, body_bytes: float) -> float:
        """What an event adds to the append-only file."""
        return self._between(self.small_file_bytes, self.large_file_bytes, body_bytes)

    def _between(self, small: float, large: float, body_bytes: float) -> float:
        slope = (large - small) / (self.large_body_bytes - self.small_body_bytes)
        return max(small + slope * (body_bytes - self.small_body_bytes), 0.0)


def load(path: Path | None = None) -> Facts:
    """Those of a file that `calibrate` wrote; without one those that came with this release. Raises ConfigurationError."""
    if path is None:
        text = resources.files("headrace.stack").joinpath(_OURS).read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise ConfigurationError(f"{path}: cannot be read: {e}") from None
    try:
        return msgspec.convert(tomllib.loads(text), Facts)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as e:
        raise ConfigurationError(f"{path or _OURS}: not what `headrace stack calibrate` writes: {e}") from None


def written(facts: Facts) -> str:
    """As TOML."""
    lines = ["# Written by `headrace stack calibrate`."]
    for name, value in msgspec.structs.asdict(facts).items():
        lines.append(
            f'{name} = "{value}"'
            if isinstance(value, str)
            else f"{name} = {value:.4g}"
            if isinstance(value, float)
            else f"{name} = {value}"
        )
    return "\n".join(lines) + "\n"

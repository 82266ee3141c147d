"""What the code and the settings of a service say, held against what is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.stack.capacity import capacity, load_of
from headrace.stack.criteria import REDIS
from headrace.stack.facts import Facts
from headrace.stack.finding import Finding
from headrace.stack.manifest import Manifest
from headrace.stack.quantity import Duration, Size
from headrace.stack.sizing import FILLED

_CODE: Final = (".rs", ".py", ".lua")
_SETTINGS: Final = (".conf", ".yaml", ".yml", ".toml")
_LEFT_OUT: Final = frozenset({".git", ".venv", "target", "node_modules", ".headrace", "__pycache__"})
_BYTES_MAX: Final = 1 << 20
_FILES_MAX: Final = 5_000

_REDIS_ONLY: Final = re.compile(
    r"[\"'](XACKDEL|XDELEX|XNACK|XCFGSET|IDMP|IDMPAUTO)[\"']|\b(xack_del|xdel_ex|xnack)\w*\("
)
_POLICY: Final = re.compile(r"maxmemory-policy[\"']?[,:=]?\s+[\"']?(allkeys-\w+)")
_APPEND: Final = re.compile(r"\b(appendonly|appendfsync)[\"']?[,:=]?\s+[\"']?(no|everysec)\b")
_MAXMEMORY: Final = re.compile(r"\bmaxmemory[\"']?[,:=]?\s+[\"']?(\d+)([kmg]?)(b?)\b", re.IGNORECASE)
_BLOCK: Final = re.compile(r"\.block\((\d[\d_]*)\)")
_TIMEOUT: Final = re.compile(
    r"set_response_timeout\(\s*(?:Some\()?\s*(?:std::time::)?Duration::from_(secs|millis)\((\d[\d_]*)\)"
)
_ANY_TIMEOUT: Final = re.compile(r"response_timeout")
_DEFAULT_S: Final = 0.5
"""Of redis-rs from 1.0 on, for every asynchronous connection."""


def scan(root: Path, manifest: Manifest, facts: Facts) -> list[Finding]:
    """Looks through the files below `root`; those that are large, generated or not ours are left out."""
    if manifest.events.type != REDIS:
        return []
    server = manifest.events.server
    valkey = server is None or server.engine == "valkey"
    found: list[Finding] = []
    for path in _files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = str(path.relative_to(root))
        if path.suffix in _CODE and valkey:
            found += _unknown_commands(name, text)
        if path.suffix == ".rs":
            found += _given_up(name, text)
        if path.suffix in _SETTINGS:
            found += _evicting(name, text)
            found += _losing(name, text, manifest.requirements.loss)
            found += _too_small(name, text, manifest, facts)
    return found


def _files(root: Path) -> Iterator[Path]:
    count = 0
    for path in sorted(root.rglob("*")):
        if _LEFT_OUT & set(path.relative_to(root).parts) or path.suffix not in (*_CODE, *_SETTINGS):
            continue
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _BYTES_MAX:
            continue
        count += 1
        if count > _FILES_MAX:
            return
        yield path


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _unknown_commands(name: str, text: str) -> Iterator[Finding]:
    """HR309."""
    for match in _REDIS_ONLY.finditer(text):
        command = next(group for group in match.groups() if group)
        yield Finding(
            "HR309", "error", name, _line(text, match.start()),
            f"{command} is a command of newer Redis that Valkey 9.1 does not have: use XACK, XDEL and XCLAIM, or say server: {{engine: redis}}",
        )  # fmt: skip


def _evicting(name: str, text: str) -> Iterator[Finding]:
    """HR308."""
    for match in _POLICY.finditer(text):
        yield Finding(
            "HR308", "error", name, _line(text, match.start()),
            f"{match[1]} deletes whole streams when memory is short: say maxmemory-policy noeviction for the server that has the events",
        )  # fmt: skip


def _given_up(name: str, text: str) -> Iterator[Finding]:
    """HR311."""
    timeouts = [int(n.replace("_", "")) * (1.0 if unit == "secs" else 0.001) for unit, n in _TIMEOUT.findall(text)]
    if not timeouts and _ANY_TIMEOUT.search(text):
        return  # it is set by an expression that nobody here can read
    longest_s = max(timeouts, default=_DEFAULT_S)
    for match in _BLOCK.finditer(text):
        block_s = int(match[1].replace("_", "")) / 1_000
        if block_s >= longest_s:
            yield Finding(
                "HR311", "error", name, _line(text, match.start()),
                f"the read blocks for {Duration(block_s)} and the connection gives up after {Duration(longest_s)}: what the server gives to it later "
                "is pending and seen by nobody. Read over a connection of its own with a response timeout above the block",
            )  # fmt: skip


def _settings(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Where it is set, and not in a comment."""
    for match in pattern.finditer(text):
        if not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].lstrip().startswith("#"):
            yield match


def _losing(name: str, text: str, loss: str) -> Iterator[Finding]:
    """HR314."""
    for match in _settings(_APPEND, text):
        option, value = match.groups()
        if loss == "best-effort" or (loss == "seconds" and value == "everysec"):
            continue
        what, right = {
            "appendonly": ("nothing is on the disk", "yes"),
            "appendfsync": ("what is acknowledged is not on the disk yet", "always"),
        }[option]
        yield Finding(
            "HR314", "warning" if value == "everysec" else "error", name, _line(text, match.start()),
            f"{option} {value}: {what}, and requirements.loss is {loss}; say {option} {right}",
        )  # fmt: skip


def _too_small(name: str, text: str, manifest: Manifest, facts: Facts) -> Iterator[Finding]:
    """HR303."""
    server, load = manifest.events.server, load_of(manifest.requirements)
    said = server.maxmemory if server is not None else None
    needs = capacity(load, facts).memory if manifest.requirements.rate is not None else 0
    for match in _settings(_MAXMEMORY, text):
        unit = (1_024 if match[3] else 1_000) ** " kmg".index(match[2].lower() or " ")
        room = Size(int(match[1]) * unit)
        if room and said is not None and room < said:
            yield Finding(
                "HR303", "error", name, _line(text, match.start()),
                f"maxmemory is {room} here, and {said} in {manifest.document.path.name}: make them the same",
            )  # fmt: skip
        elif room and needs > room * FILLED:
            yield Finding(
                "HR303", "error", name, _line(text, match.start()),
                f"maxmemory is {room}, of which events may fill {Size(room * FILLED)}, and the requirements come to {Size(needs)}: raise it",
            )  # fmt: skip

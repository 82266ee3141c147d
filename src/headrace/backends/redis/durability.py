"""The gate: does this server keep what it acknowledges, at the level the program asked for?

A Redis or Valkey server as it is installed forgets everything at a restart or keeps it by luck. `examine` asks the server how it is
set up and judges every fact; `enforce` refuses to start on a server that breaks the promise of the level. Servers that hide
CONFIG (most managed ones) are judged by INFO alone, and what that does not tell is reported as unverified.

The facts behind the rules, measured by killing servers and cutting their files back to the last fsync: with `appendfsync everysec` a
power cut loses 1 to 3 seconds of acknowledged writes, and so does a plain kill while the disk is slow; with `always` it lost none.
`no-appendfsync-on-rewrite yes` turns `always` into no fsync at all while the file is rewritten. A replica that was not waited for
(`WAIT`) loses tens of thousands of acknowledged writes when it is promoted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from msgspec import Struct

from headrace.backends.redis.client import Client
from headrace.backends.redis.node import Node
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import DurabilityError
from headrace.settings import Durability, Settings, redacted

Severity = Literal["violation", "warning"]
Version = tuple[int, ...]

_SKEW_S: Final = 1.0
_OLDEST: Final[dict[str, Version]] = {"redis": (7, 0), "valkey": (7, 2)}
_SETTINGS: Final = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "maxmemory-policy",
    "min-replicas-to-write",
    "save",
)
_SET: Final = "CONFIG SET "
_UNVERIFIED: Final = "unverified"


class Finding(Struct, frozen=True):
    """One fact about the server, judged."""

    name: str
    """What was looked at: a setting of the server, or `version`, `role`, `clock` ..."""
    ok: bool
    severity: Severity
    """What it is when it is not ok. A violation keeps a worker from starting."""
    found: str
    wanted: str
    fix: str
    """One command for the server (`CONFIG SET ...`) or one sentence; empty if ok."""


class Report(Struct, frozen=True):
    """What was found on a server, the gravest first."""

    server: str
    """`redis` or `valkey`."""
    version: str
    mode: str
    """`standalone`, `cluster` or `sentinel`."""
    role: str
    """`primary` or `replica`."""
    url: str
    """Without its secrets."""
    level: Durability
    findings: tuple[Finding, ...]
    loss_window: str
    """One sentence: what may be lost at this level on this server, by what."""

    @property
    def violations(self) -> tuple[Finding, ...]:
        """What breaks the promise of the level, the gravest first."""
        return tuple(f for f in self.findings if not f.ok and f.severity == "violation")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What an operator should know or change; nothing acknowledged is at stake beyond the loss window."""
        return tuple(f for f in self.findings if not f.ok and f.severity == "warning")


class _Patch(Struct, frozen=True):
    """A release series and the first of its releases without known holes."""

    server: str
    series: Version
    first_good: Version
    what: str


_PATCHES: Final = (
    _Patch("redis", (7, 0), (7, 2, 11), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("redis", (7, 2), (7, 2, 11), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("redis", (7, 4), (7, 4, 6), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("redis", (8, 0), (8, 0, 4), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch(
        "redis", (8, 2), (8, 2, 9), "users can run code on the server (CVE-2025-49844, CVE-2025-62507, CVE-2026-23479)"
    ),
    _Patch("redis", (8, 4), (8, 4, 6), "users can run code on the server (CVE-2026-23479)"),
    _Patch("redis", (8, 6), (8, 6, 6), "users can run code on the server (CVE-2026-23479)"),
    _Patch("redis", (8, 8), (8, 8, 2), "XREAD and XREADGROUP can pass by ACL rules"),
    _Patch("valkey", (7, 2), (7, 2, 11), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("valkey", (8, 0), (8, 0, 6), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("valkey", (8, 1), (8, 1, 4), "Lua scripts can run code on the server (CVE-2025-49844)"),
    _Patch("valkey", (9, 0), (9, 0, 3), "anyone who reaches the port can end the server (CVE-2026-27623)"),
)
"""By the release notes of the two projects."""

_TORN_UNTIL: Final[dict[str, Version]] = {"valkey": (9, 1, 2)}
"""A crash in the middle of a script's writes can leave half a transaction at the end of the AOF; new writes are appended to it and are
lost at the next restart. Seen on Redis 7.0, same code up to 8.0, later ones not checked; Valkey repaired it (#4342), 9.1.2 is clean."""


class _Facts(Struct, frozen=True):
    """What the server said about itself."""

    info: dict[str, str]
    config: dict[str, str] | None
    """None: CONFIG is refused."""
    skew_s: float
    """The server's clock minus ours; 0 where the difference is within the time the question took."""

    @property
    def server(self) -> str:
        """`redis` or `valkey`."""
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version_text(self) -> str:
        """As the server writes it."""
        return self.info.get("valkey_version") or self.info.get("redis_version", "unknown")

    @property
    def version(self) -> Version:
        """For comparing; empty if unknown."""
        return tuple(int(n) for n in re.findall(r"\d+", self.version_text)[:3])

    @property
    def mode(self) -> str:
        """`standalone`, `cluster` or `sentinel`."""
        return self.info.get("server_mode") or self.info.get("redis_mode", "unknown")

    @property
    def role(self) -> str:
        """`primary` or `replica`."""
        return "replica" if self.info.get("role") == "slave" else "primary"

    @property
    def aof(self) -> bool:
        """Whether the server writes an append-only file."""
        return self.info.get("aof_enabled") == "1"

    def number(self, name: str) -> int:
        """A number out of INFO; 0 if the server does not say."""
        text = self.info.get(name, "0")
        return int(text) if text.isdigit() else 0


_Check = Callable[[_Facts, Settings], Iterator[Finding]]


def _by_level(settings: Settings) -> Severity:
    """How grave something is that endangers acknowledged events: at `relaxed` the program has accepted it."""
    return "warning" if settings.durability is Durability.RELAXED else "violation"


def _judge(name: str, severity: Severity, ok: bool, found: str, wanted: str, fix: str) -> Finding:  # noqa: FBT001 - the verdict is the point
    return Finding(name, ok, severity, found, wanted, "" if ok else fix)


def _configured(facts: _Facts, name: str, severity: Severity, good: tuple[str, ...]) -> Finding:
    """Judges a setting that CONFIG GET tells; `good` are the accepted values, the best first."""
    if facts.config is None or name not in facts.config:
        fix = f"the server does not show its configuration: see to it that {name} is {good[0]}"
        return Finding(name, ok=False, severity="warning", found=_UNVERIFIED, wanted=good[0], fix=fix)
    found = facts.config[name]
    return _judge(name, severity, found in good, found, " or ".join(good), f"{_SET}{name} {good[0]}")


def _topology(facts: _Facts, settings: Settings) -> Iterator[Finding]:
    oldest = _OLDEST[facts.server]
    wanted = f"{facts.server} {'.'.join(map(str, oldest))} or newer"
    fix = f"upgrade the server; Headrace needs {wanted}"
    yield _judge("version", "violation", facts.version >= oldest, f"{facts.server} {facts.version_text}", wanted, fix)
    cluster, wanted_cluster = facts.info.get("cluster_enabled") == "1", "+cluster://" in settings.url
    fix = "follow the Cluster: a URL that begins with redis+cluster:// (rediss+cluster:// with TLS) and names one or more of its nodes"
    wanted = "yes, as the URL says" if wanted_cluster else "no"
    yield _judge("cluster", "violation", cluster == wanted_cluster, "yes" if cluster else "no", wanted, fix)
    host, port = facts.info.get("master_host", ""), facts.info.get("master_port", "")
    fix = f"connect to the primary{f', {host}:{port}' if host else ''}: a replica takes no writes"
    yield _judge("role", "violation", facts.role == "primary", facts.role, "primary", fix)
    loading = facts.info.get("loading", "0") != "0"
    yield _judge(
        "loading",
        "violation",
        not loading,
        "yes" if loading else "no",
        "no",
        "wait until the server has loaded its data",
    )


def _append_only_file(facts: _Facts, settings: Settings) -> Iterator[Finding]:
    severity = _by_level(settings)
    if facts.aof:
        found = "yes"
    elif facts.config is None:
        found = "no"
    else:
        found = (
            f"no (snapshots only, save {facts.config['save']})"
            if facts.config.get("save")
            else "no (nothing is written to disk)"
        )
    yield _judge("appendonly", severity, facts.aof, found, "yes", f"{_SET}appendonly yes")
    if settings.durability is Durability.RELAXED:
        yield _configured(facts, "appendfsync", severity, ("everysec", "always"))
    else:
        yield _configured(facts, "appendfsync", severity, ("always",))
        yield _configured(facts, "no-appendfsync-on-rewrite", severity, ("no",))
    if facts.aof:
        write = facts.info.get("aof_last_write_status", "ok")
        yield _judge(
            "aof_last_write_status",
            severity,
            write == "ok",
            write,
            "ok",
            "free or repair the server's disk: it cannot write its AOF",
        )
        rewrite = facts.info.get("aof_last_bgrewrite_status", "ok")
        fix = "the AOF was not rewritten and grows: free disk and memory, then BGREWRITEAOF"
        yield _judge("aof_last_bgrewrite_status", "warning", rewrite == "ok", rewrite, "ok", fix)


def _memory(facts: _Facts, settings: Settings) -> Iterator[Finding]:
    name, limit = "maxmemory-policy", facts.number("maxmemory")
    policy = facts.info.get("maxmemory_policy") or (facts.config or {}).get(name, _UNVERIFIED)
    severity: Severity = _by_level(settings) if limit and policy != _UNVERIFIED else "warning"
    found = policy if limit else f"{policy} (no maxmemory, so nothing is evicted now)"
    yield _judge(name, severity, policy == "noeviction", found, "noeviction", f"{_SET}{name} noeviction")
    allocator = facts.info.get("mem_allocator", "unknown")
    fix = "use a server built with jemalloc, or preload it: libc's malloc is slower"
    found = "libc (as built; the server does not know of a preloaded one)" if allocator == "libc" else allocator
    yield _judge("mem_allocator", "warning", allocator != "libc", found, "jemalloc", fix)


def _replicas(facts: _Facts, settings: Settings) -> Iterator[Finding]:
    if settings.durability is not Durability.QUORUM:
        return
    wanted, found = settings.replicas, facts.number("connected_slaves")
    fix = f"start and connect replicas ({wanted} needed): on each, REPLICAOF <host and port of this server>"
    yield _judge("replicas", "violation", found >= wanted, str(found), f"{wanted} or more", fix)
    name = "min-replicas-to-write"
    if facts.config is None or name not in facts.config:
        yield _configured(facts, name, "warning", (str(wanted),))
        return
    minimum = facts.config[name]
    yield _judge(name, "warning", int(minimum) >= wanted, minimum, f"{wanted} or more", f"{_SET}{name} {wanted}")


def _known_flaws(facts: _Facts, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001 - all checks are called alike
    version = facts.version
    if facts.aof and version < _TORN_UNTIL.get(facts.server, (version[0] + 1,) if version else ()):
        fix = f"after a crash or power cut run {facts.server}-check-aof --fix on the AOF before the server starts, or use Valkey 9.1.2 or newer"
        yield Finding(
            "torn-aof", ok=False, severity="warning", found=facts.version_text, wanted="Valkey 9.1.2 or newer", fix=fix
        )
    for patch in _PATCHES:
        if patch.server == facts.server and patch.series == version[:2] and version < patch.first_good:
            good = ".".join(map(str, patch.first_good))
            fix = f"{patch.what}: upgrade to {good} or newer, unless your distribution has patched {facts.version_text}"
            yield Finding(
                "security", ok=False, severity="warning", found=facts.version_text, wanted=f"{good} or newer", fix=fix
            )


def _clock(facts: _Facts, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001 - all checks are called alike
    fix = "let NTP set the clocks of this machine and of the server: `at=` and ages are off by the difference, nothing is lost"
    yield _judge(
        "clock",
        "warning",
        abs(facts.skew_s) <= _SKEW_S,
        f"{facts.skew_s:+.1f} s",
        f"within {_SKEW_S:.0f} s of ours",
        fix,
    )


_CHECKS: Final[tuple[_Check, ...]] = (_topology, _append_only_file, _replicas, _memory, _known_flaws, _clock)
"""The gravest first: `enforce` names the first violation."""


def _loss_window(facts: _Facts, settings: Settings) -> str:
    """What may be lost, given that there are no violations."""
    match settings.durability:
        case Durability.FSYNC if "+" in settings.url or facts.number("connected_slaves"):
            return (
                "A crash or a power cut of a server that comes back loses nothing that was acknowledged. A failover loses what the promoted "
                'replica had not received: mostly the last moments, without a bound. durability="quorum" waits for a replica.'
            )
        case Durability.FSYNC:
            return "A crash or a power cut loses nothing that was acknowledged; the loss of the server's disk, or a failover to a replica, may."
        case Durability.QUORUM:
            some = "a replica" if settings.replicas == 1 else f"{settings.replicas} replicas"
            return f"A crash, a power cut or the loss of the server loses nothing acknowledged, as long as {some} that confirmed it takes over."
    if not facts.aof:
        return (
            "A crash or restart of the server loses everything since its last snapshot, or everything if it makes none."
        )
    if (facts.config or {}).get("appendfsync") == "always":
        return "A crash or a power cut loses nothing that was acknowledged, because this server syncs every write (appendfsync always)."
    return "A crash or a power cut loses the last 2 seconds of acknowledged events, more on a slow disk."


async def _ask(client: Node) -> _Facts:
    """Asks the server for its facts. Raises NotConnected, Refused, Closed."""
    raw: bytes = await client.command("INFO")
    info = dict(line.split(":", 1) for line in raw.decode(errors="replace").splitlines() if ":" in line)
    config: dict[str, str] | None
    try:
        flat: list[bytes] = await client.command("CONFIG", "GET", *_SETTINGS)
        config = {flat[i].decode(): flat[i + 1].decode(errors="replace") for i in range(0, len(flat), 2)}
    except ServerSaid:  # hidden, renamed or forbidden, as on managed servers: what INFO tells has to do
        config = None
    before = time.time()
    seconds, micros = await client.command("TIME")
    after = time.time()
    skew = int(seconds) + int(micros) / 1e6 - (before + after) / 2
    return _Facts(info, config or None, skew if abs(skew) > (after - before) / 2 else 0.0)


async def examine(client: Client, settings: Settings) -> Report:
    """Judges the server that `client` is connected to. Changes nothing on it. Raises NotConnected, Refused (INFO is forbidden), Closed."""
    every = [await _ask(node) for node in await client.nodes()]
    facts = every[0]
    return Report(
        server=facts.server,
        version=facts.version_text,
        mode=facts.mode,
        role=facts.role,
        url=redacted(settings.url),
        level=settings.durability,
        findings=_worst([[finding for check in _CHECKS for finding in check(one, settings)] for one in every]),
        loss_window=_loss_window(facts, settings),
    )


def _worst(of_nodes: list[list[Finding]]) -> tuple[Finding, ...]:
    """Of several primaries the worst of each finding counts."""
    bad = {(f.name, f.fix): f for findings in of_nodes for f in findings if not f.ok}
    fine = [f for f in of_nodes[0] if f.ok and f.name not in {name for name, _ in bad}]
    order = {f.name: place for findings in of_nodes for place, f in enumerate(findings)}
    return tuple(sorted([*bad.values(), *fine], key=lambda f: order[f.name]))


def enforce(report: Report) -> None:
    """Returns if the server keeps the promise of its level; else raises DurabilityError: one line with the gravest violation and the way out."""
    violations = report.violations
    if not violations:
        return
    worst, level = violations[0], report.level.value
    commands = [v.fix.removeprefix(_SET) for v in violations if v.fix.startswith(_SET)]
    fix = _SET + " ".join(commands) if worst.fix.startswith(_SET) else worst.fix
    if worst.name in {"version", "cluster", "role", "loading"}:  # no level makes these good
        wrong, lower = f"{worst.name} is {worst.found}, expected {worst.wanted}", ""
    else:
        wrong = f"{worst.name} is {worst.found}, durability {level!r} needs {worst.wanted}"
        other = Durability.FSYNC if worst.name == "replicas" else Durability.RELAXED
        lower = f'; or lower the level: durability="{other.value}" or HEADRACE_DURABILITY={other.value}'
    more = f" (and {len(violations) - 1} more: headrace doctor)" if len(violations) > 1 else ""
    raise DurabilityError(f"{report.url}: {wrong}{more}; fix: {fix}{lower}")

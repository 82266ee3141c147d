"""The house rules hold, and each rule catches what it is for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import headrace
from tests.house import rules

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "headrace"
PUBLIC = [
    "Closed",
    "ConfigurationError",
    "Context",
    "DurabilityError",
    "Headrace",
    "HeadraceError",
    "InvalidEvent",
    "NotConnected",
    "Overloaded",
    "Refused",
    "Reject",
    "Retry",
    "Topic",
]
BANNED = {
    r"/work/": "a path of somebody's machine",
    r"pypi\.org|pythonhosted|crates\.io|registry\.npmjs|deb\.debian": "the host of a package registry; name the registry instead",
    r"\bFIXME\b|\bXXX\b|\bTODO\b": "do it, or write an issue",
}


def modules() -> dict[str, str]:
    out = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        out[name.removesuffix(".__init__").removesuffix("__init__")] = path.read_text(encoding="utf-8")
    return out


def test_sizes() -> None:
    assert [m for name, source in modules().items() for m in rules.size(name, source)] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [m for name, source in modules().items() for m in rules.documented(name, source)] == []


def test_imports_point_down() -> None:
    every = modules()
    assert [m for name, source in every.items() for m in rules.direction(name, source, every)] == []


def test_no_circles() -> None:
    assert rules.circles(modules()) == []


def test_clients_stay_in_their_backend() -> None:
    assert [m for name, source in modules().items() for m in rules.clients(name, source)] == []


def test_names() -> None:
    assert [m for name in modules() for m in rules.names(name)] == []


def test_no_exception_disappears() -> None:
    assert [m for name, source in modules().items() for m in rules.excepts(name, source)] == []


def test_public_names() -> None:
    assert headrace.__all__ == PUBLIC, "the public surface changed: update this list, the reference and the changelog"


def test_one_title_per_page() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1, f"{page}: exactly one H1 per page"


def test_banned_words() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or path.suffix in (".zip", ".lock") or name == "LICENSE":
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for pattern, why in BANNED.items():
            found = re.search(pattern, text)
            assert found is None, f"{name}: {pattern}: {why}"


def test_scripts_are_in_the_package() -> None:
    assert len(list((SOURCE / "backends" / "redis" / "scripts").glob("*.lua"))) >= 10


# Each rule catches what it is for.


def test_rule_size() -> None:
    assert rules.size("m", "x = 1\n" * 401)
    assert rules.size("m", "def f():\n" + "    x = 1\n" * 61)
    assert rules.size("m", "def f(a, b, c, d, e, f, *, g, h, i): ...")
    assert not rules.size("m", "def f(self, a, b, c, d, e, f, *, g, h): ...")


def test_rule_documented() -> None:
    assert rules.documented("m", "x = 1")


def test_rule_direction() -> None:
    known = [
        "",
        "errors",
        "topic",
        "runtime.pump",
        "backends.redis.client",
        "backends.memory",
        "cli.run",
        "embedded.server",
    ]
    assert rules.direction("topic", "from headrace.runtime.pump import Pump", known)
    assert rules.direction("backends.redis.client", "from headrace.topic import Topic", known)
    assert rules.direction("backends.redis.client", "def f():\n    from headrace.backends import memory", known)
    assert rules.direction("runtime.pump", "from headrace.embedded import server", known)
    assert rules.direction("topic", "from headrace import Headrace", known)
    assert not rules.direction("cli.run", "from headrace.runtime.pump import Pump", known)


def test_rule_circles() -> None:
    assert rules.circles({"a": "from headrace import b", "b": "def f():\n    import headrace.a"})
    assert not rules.circles({"a": "from headrace import b", "b": ""})


def test_rule_clients() -> None:
    assert rules.clients("topic", "import redis.asyncio")
    assert not rules.clients("backends.redis.client", "import redis.asyncio")


def test_rule_names() -> None:
    assert rules.names("runtime.utils")


def test_rule_excepts() -> None:
    assert rules.excepts("m", "try:\n    f()\nexcept ValueError:\n    pass\n")
    assert rules.excepts("m", "try:\n    f()\nexcept:\n    g()\n")
    assert not rules.excepts("m", "try:\n    f()\nexcept ValueError:\n    pass  # it is gone already\n")

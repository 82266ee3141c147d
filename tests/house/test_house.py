"""The house rules hold, and each rule catches what it is for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

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


def modules() -> dict[str, str]:
    out = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        out[name.removesuffix(".__init__").removesuffix("__init__")] = path.read_text(encoding="utf-8")
    return out


def files() -> dict[str, str]:
    """What is in the repository, or will be with the next commit; without git (an unpacked archive), what lies there."""
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    else:
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        listed = [str(path) for path in found if not {".venv", "__pycache__", "dist"} & set(path.parts)]
    return {
        name: (ROOT / name).read_text(encoding="utf-8", errors="replace")
        for name in sorted(listed)
        if (ROOT / name).is_file()
    }


def hold(messages: Iterable[str]) -> None:
    """The rule holds; else every message, unabridged."""
    broken = list(messages)
    assert not broken, "\n".join(["", *broken])


def test_sizes() -> None:
    hold(m for name, source in modules().items() for m in rules.size(name, source))


def test_every_module_says_what_it_is_for() -> None:
    hold(m for name, source in modules().items() for m in rules.documented(name, source))


def test_imports_point_down() -> None:
    every = modules()
    hold(m for name, source in every.items() for m in rules.direction(name, source, every))


def test_imports_say_where_a_thing_lives() -> None:
    every = modules()
    hold(m for name, source in every.items() for m in rules.absolute(name, source, every))


def test_no_circles() -> None:
    hold(rules.circles(modules()))


def test_clients_stay_in_their_backend() -> None:
    hold(m for name, source in modules().items() for m in rules.clients(name, source))


def test_names() -> None:
    hold(m for name in modules() for m in rules.names(name))


def test_no_exception_disappears() -> None:
    hold(m for name, source in modules().items() for m in rules.excepts(name, source))


def test_public_names() -> None:
    assert headrace.__all__ == PUBLIC, "the public surface changed: update this list, the reference and the changelog"


def test_one_title_per_page() -> None:
    pages = {name: text for name, text in files().items() if name.endswith(".md")}
    hold(m for name, text in pages.items() for m in rules.title(name, text))


def test_banned_words() -> None:
    hold(m for name, text in files().items() for m in rules.banned(name, text))


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
    assert not rules.documented("m", '"""Says it."""')


def test_rule_direction() -> None:
    known = [
        "",
        "errors",
        "topic",
        "event",
        "codec",
        "app",
        "runtime.pump",
        "backends",
        "backends.contract",
        "backends.redis.client",
        "backends.memory",
        "cli.run",
        "embedded.server",
    ]
    assert rules.direction("topic", "from headrace.runtime.pump import Pump", known)
    assert rules.direction("backends.redis.client", "from headrace.topic import Topic", known)
    assert rules.direction("backends.redis.client", "def f():\n    from headrace.backends import memory", known)
    assert rules.direction("runtime.pump", "from headrace.embedded import server", known)
    for above in ("event", "codec", "app", "runtime.pump"):
        assert rules.direction("backends.redis.client", f"if TYPE_CHECKING:\n    import headrace.{above}", known)
    both = "from headrace import backends\nfrom headrace.backends.contract import Record"
    assert rules.direction("backends.redis.client", both, known), "the package counts beside one of its modules"
    assert not rules.direction("backends.redis.client", "from headrace.backends.contract import Record", known)
    assert not rules.direction("cli.run", "from headrace.runtime.pump import Pump", known)


def test_rule_places() -> None:
    with pytest.raises(AssertionError, match="tools has no place in RANKS"):
        rules.direction("tools", "import headrace.errors", ["tools", "errors"])


def test_rule_absolute() -> None:
    known = ["", "limits", "cli.run"]
    assert rules.absolute("cli.run", "from headrace import Headrace", known)
    assert rules.absolute("cli.run", "import headrace", known)
    assert rules.absolute("cli.run", "def f():\n    from . import exits", known)
    assert rules.absolute("cli.run", "from ..limits import batch_events_max", known)
    assert not rules.absolute("cli.run", "from headrace import limits\nfrom headrace.limits import x", known)


def test_rule_circles() -> None:
    assert rules.circles({"a": "from headrace import b", "b": "def f():\n    import headrace.a"})
    assert rules.circles({"a": "import headrace.b", "b": "if TYPE_CHECKING:\n    from headrace.a import A"})
    assert not rules.circles({"a": "from headrace import b", "b": ""})


def test_rule_clients() -> None:
    assert rules.clients("topic", "import redis.asyncio")
    assert rules.clients("backends.redistribute", "def f():\n    from redis import Redis")
    assert not rules.clients("backends.redis.client", "import redis.asyncio")


def test_rule_names() -> None:
    assert rules.names("runtime.utils")
    assert not rules.names("runtime.pump")


def test_rule_excepts() -> None:
    assert rules.excepts("m", "try:\n    f()\nexcept ValueError:\n    pass\n")
    assert rules.excepts("m", "try:\n    f()\nexcept:\n    g()\n")
    assert not rules.excepts("m", "try:\n    f()\nexcept ValueError:\n    pass  # it is gone already\n")


def test_rule_title() -> None:
    assert rules.title("a.md", "")
    assert rules.title("a.md", "# One\n\n# Two\n")
    assert not rules.title("a.md", "# One\n\n```sh\n# a comment\n```\n\n## Two\n")


def test_rule_banned() -> None:
    (message,) = rules.banned("a.md", "see\n/wor" + "k/main")
    assert message.startswith("a.md:2: ")
    for text in ("/tmp/pla" + "n/x", "https://pypi.or" + "g/simple", "files.pythonhoste" + "d", "# TOD" + "O: later"):
        assert rules.banned("a.py", text), text
    assert not rules.banned("a.py", "the PyPI package works; a framework/path too")

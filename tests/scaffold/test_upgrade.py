"""A newer template is merged with what the user made of the last one: nothing is lost, and conflicts are marked."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import ConfigurationError
from headrace.scaffold import record, topics, upgrade
from headrace.scaffold.folder import Folder
from headrace.scaffold.generate import Rendering
from headrace.scaffold.record import Lock
from headrace.scaffold.render import File
from headrace.scaffold.upgrade import Fate
from headrace.stack.manifest import Consumer, Stream
from headrace.version import VERSION

LINES = [f"line {n}\n" for n in range(9)]
LOCK = Lock("shop", VERSION, "python-worker", "redis-streams", "1.0")


def text(**changed: str) -> bytes:
    """Nine lines, some of them otherwise: `text(l3="mine")`."""
    return "".join(f"{changed[f'l{n}']}\n" if f"l{n}" in changed else line for n, line in enumerate(LINES)).encode()


class Project:
    """A project that was generated from some files, and the next rendering."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.folder = root, Folder(root)
        self.new: dict[str, File] = {}
        (root / "stack.yaml").write_text(
            "metadata: {name: shop}\nquality: {events: {type: redis-streams, why: it was asked for}}\n"
        )
        lock = msgspec.structs.replace(LOCK, template="1.1")
        monkeypatch.setattr(upgrade, "rendered", lambda _: Rendering(lock, self.new))

    def generated(self, **files: File) -> None:
        for path, file in files.items():
            self.folder.write(path, file)
        record.keep(self.folder, LOCK, files)

    def upgrade(self, **new: File) -> dict[str, Fate]:
        self.new = new
        plan = upgrade.plan(self.root)
        upgrade.apply(self.root, plan)
        return {change.path: change.fate for change in plan.changes}

    def read(self, path: str) -> bytes | None:
        return self.folder.read(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


def test_what_nobody_touched_is_replaced_and_what_only_the_user_touched_is_kept(project: Project) -> None:
    project.generated(a=File(text()), b=File(text()), c=File(text()))
    project.folder.write("b", File(text(l1="mine")))
    fates = project.upgrade(a=File(text(l7="new"), executable=True), b=File(text()), c=File(text()), d=File(b"added\n"))
    assert fates == {"a": Fate.UPDATED, "d": Fate.ADDED}
    assert project.read("a") == text(l7="new")
    assert (project.root / "a").stat().st_mode & 0o111
    assert project.read("b") == text(l1="mine")
    assert project.read("d") == b"added\n"


def test_both_changes_are_there(project: Project) -> None:
    project.generated(a=File(text()))
    project.folder.write("a", File(text(l1="mine")))
    assert project.upgrade(a=File(text(l7="new"))) == {"a": Fate.MERGED}
    assert project.read("a") == text(l1="mine", l7="new")
    assert project.upgrade(a=File(text(l7="newer"))) == {"a": Fate.MERGED}, (
        "the last rendering is what is merged against"
    )
    assert project.read("a") == text(l1="mine", l7="newer")


def test_a_conflict_has_both_sides_and_is_resolved_before_the_next(project: Project) -> None:
    project.generated(a=File(text()))
    project.folder.write("a", File(text(l4="mine")))
    assert project.upgrade(a=File(text(l4="theirs"))) == {"a": Fate.CONFLICT}
    marked = project.read("a") or b""
    assert (
        marked.index(b"<<<<<<< yours")
        < marked.index(b"mine\n")
        < marked.index(b"theirs\n")
        < marked.index(b">>>>>>> template")
    )
    assert b"line 4\n" in marked
    with pytest.raises(ConfigurationError, match="a: still with the marks of a conflict"):
        project.upgrade(a=File(text(l4="theirs")))
    project.folder.write("a", File(text(l4="both")))
    assert project.upgrade(a=File(text(l4="theirs"))) == {}


def test_a_file_of_the_users_is_never_written(project: Project) -> None:
    project.generated(a=File(text(), seeded=True))
    project.folder.write("a", File(text(l1="mine")))
    project.folder.write("b", File(b"also mine\n"))
    assert project.upgrade(a=File(text(l7="new"), seeded=True), b=File(b"template\n", seeded=True)) == {}
    assert project.read("a") == text(l1="mine")
    assert project.read("b") == b"also mine\n"


def test_what_the_user_deleted_stays_deleted(project: Project) -> None:
    project.generated(a=File(text()), b=File(text(), seeded=True))
    project.folder.remove("a")
    project.folder.remove("b")
    assert project.upgrade(a=File(text(l7="new")), b=File(text(l7="new"), seeded=True)) == {"a": Fate.DELETED}
    assert project.read("a") is None
    assert project.read("b") is None


def test_what_the_template_dropped_goes_unless_it_was_changed(project: Project) -> None:
    project.generated(a=File(text()), b=File(text()), c=File(text(), seeded=True))
    project.folder.write("b", File(text(l1="mine")))
    assert project.upgrade() == {"a": Fate.REMOVED, "b": Fate.KEPT}
    assert project.read("a") is None
    assert project.read("b") == text(l1="mine")
    assert project.read("c") == text()


def test_a_file_of_the_users_where_a_new_one_goes_is_a_conflict(project: Project) -> None:
    project.generated()
    project.folder.write("a", File(b"mine\n"))
    assert project.upgrade(a=File(b"theirs\n")) == {"a": Fate.CONFLICT}
    assert {b"mine", b"theirs"} <= set((project.read("a") or b"").split(b"\n"))


def test_an_upgrade_that_was_interrupted_is_repeated(project: Project) -> None:
    project.generated(a=File(text()), b=File(text()))
    project.folder.write("b", File(text(l1="mine")))
    project.new = {"a": File(text(l7="new")), "b": File(text(l7="new"))}
    plan = upgrade.plan(project.root)
    for change in plan.changes:  # all files, but not the record
        assert change.file is not None
        project.folder.write(change.path, change.file)
    project.upgrade(**project.new)
    assert project.read("a") == text(l7="new")
    assert project.read("b") == text(l1="mine", l7="new")


def test_line_ends_and_modes_are_the_users(project: Project) -> None:
    project.generated(a=File(text()))
    project.folder.write("a", File(text(l1="mine").replace(b"\n", b"\r\n")))
    (project.root / "a").chmod(0o750)
    assert project.upgrade(a=File(text(l7="new"))) == {"a": Fate.MERGED}
    assert project.read("a") == text(l1="mine", l7="new").replace(b"\n", b"\r\n")
    assert (project.root / "a").stat().st_mode & 0o777 == 0o750


def test_links_and_folders_are_left_alone(project: Project) -> None:
    project.generated(a=File(text()), b=File(text()), c=File(text()))
    for name in "ab":
        project.folder.remove(name)
    (project.root / "a").symlink_to(project.root / "c")
    (project.root / "b").mkdir()
    new = File(text(l7="new"))
    fates = project.upgrade(a=new, b=new, c=new)
    assert fates == {"a": Fate.LEFT, "b": Fate.LEFT, "c": Fate.UPDATED}
    assert (project.root / "a").is_symlink()


def test_a_dependency_that_the_user_adds_is_no_conflict(project: Project) -> None:
    before = b'deps = [\n  "headrace>=0.1.0",\n  # and what else the service needs:\n]\n'
    project.generated(a=File(before))
    project.folder.write("a", File(before.replace(b"needs:\n", b'needs:\n  "httpx",\n')))
    assert project.upgrade(a=File(before.replace(b"0.1.0", b"0.2.0"))) == {"a": Fate.MERGED}


def test_an_upgrade_that_changes_nothing_writes_nothing(project: Project) -> None:
    same = {"a": File(text()), "mine": File(text(), seeded=True)}
    project.generated(**same)
    record.keep(project.folder, msgspec.structs.replace(LOCK, template="1.1"), same)
    before = {path: path.stat().st_mtime_ns for path in (project.root / ".headrace").iterdir()}
    assert project.upgrade(a=same["a"], mine=File(b"otherwise", seeded=True)) == {}
    assert {path: path.stat().st_mtime_ns for path in (project.root / ".headrace").iterdir()} == before
    assert not upgrade.plan(project.root).stale
    project.folder.write("a", File(text(l1="mine")))
    project.upgrade(a=File(text(l1="mine")), mine=same["mine"])
    assert record.recall(project.folder)[1]["a"] == File(text(l1="mine")), "it is what the next one is merged against"


OLD = Stream("orders", partitions=16, group="billing", consumer=Consumer(ordered=True))


@pytest.mark.parametrize(
    ("before", "changes", "says"),
    [
        ({}, {}, []),
        ({}, {"partitions": 32}, ["`headrace partitions orders 32`"]),
        ({}, {"partitions": 24}, ["16 partitions where it exists, which never become 24"]),
        ({}, {"partitions": 8}, ["16 partitions where it exists, which never become 8"]),
        ({"partitions": 1}, {"partitions": 16}, ["one partition where it exists, which never becomes several"]),
        ({}, {"consumer": Consumer()}, ["is ordered for good", "`headrace groups orders --reset billing --to PLACE`"]),
        ({"consumer": None, "group": ""}, {"group": "shop"}, ["group shop of topic orders is shared for good"]),
        ({}, {"consumer": Consumer(), "group": "bills"}, []),
        ({}, {"name": "trades", "partitions": 4}, []),
    ],
)
def test_what_servers_need_first_is_said(before: dict[str, Any], changes: dict[str, Any], says: list[str]) -> None:
    old = msgspec.structs.replace(OLD, **before)
    said = topics.steps([old], [msgspec.structs.replace(OLD, **changes), Stream("other")], "shop")
    assert len(said) == min(len(says), 1)
    assert all(words in said[0] for words in says)


def test_another_name_or_an_older_release_is_refused(project: Project) -> None:
    project.generated()
    manifest = project.root / "stack.yaml"
    manifest.write_text(manifest.read_text().replace("shop", "store"))
    with pytest.raises(ConfigurationError, match="was generated as shop"):
        project.upgrade()
    manifest.write_text(manifest.read_text().replace("store", "shop"))
    record.keep(project.folder, msgspec.structs.replace(LOCK, headrace="9.9.9"), {})
    with pytest.raises(ConfigurationError, match="upgrade headrace first"):
        project.upgrade()


def test_a_damaged_or_absent_record_is_said(project: Project) -> None:
    with pytest.raises(ConfigurationError, match=r"no \.headrace/lock\.json"):
        project.upgrade()
    project.generated(a=File(text()))
    (project.root / record.BASE).write_bytes(b"not a tar")
    with pytest.raises(ConfigurationError, match="is damaged"):
        project.upgrade()
    project.generated(a=File(text()))
    packed = bytearray((project.root / record.BASE).read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    (project.root / record.BASE).write_bytes(packed)
    with pytest.raises(ConfigurationError, match="is damaged"):
        project.upgrade()


def test_only_what_is_committed_is_upgraded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="git cannot say"):
        upgrade.check_clean(tmp_path)
    for words in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "1"),
    ):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    upgrade.check_clean(tmp_path)
    (tmp_path / "new").write_text("x")
    with pytest.raises(ConfigurationError, match="not committed"):
        upgrade.check_clean(tmp_path)


def _commits(where: Path, *words: str) -> None:
    for line in (("init", "-q"), ("add", "."), words, ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm1")):
        subprocess.run(["git", "-C", where, *line], check=True)


@pytest.mark.parametrize(
    ("rule", "count"), [("", 0), ("shop/", 4), ("*.toml", 1), (".headrace/", 2), ("mine", 0)], ids=str
)
def test_what_git_ignores_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, count: int
) -> None:
    """A folder that an outer repository ignores looks clean to `git status`; so does a file that a rule of the user's hits."""
    root = tmp_path / "shop"
    root.mkdir()
    project = Project(root, monkeypatch)
    project.generated(**{"a.toml": File(text()), "b é.py": File(text()), "mine": File(text(), seeded=True)})
    (tmp_path / ".gitignore").write_text(f"{rule}\n.venv\n")
    (root / ".venv").mkdir()
    (root / ".venv" / "of nobody").write_text("x")
    _commits(tmp_path, "status", "-s")
    if count:
        with pytest.raises(
            ConfigurationError, match=rf"git ignores {count} of the generated files .*commit them.*--allow-dirty"
        ):
            upgrade.check_clean(root)
        _commits(tmp_path, "add", "--force", "shop")
    upgrade.check_clean(root)

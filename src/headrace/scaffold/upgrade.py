"""A newer template, or a changed manifest, merged into a project: the last rendering, what the user made of it, and the new one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from headrace.errors import ConfigurationError
from headrace.scaffold import record
from headrace.scaffold.folder import Folder
from headrace.scaffold.generate import Rendering, rendered
from headrace.scaffold.record import Lock
from headrace.scaffold.render import File
from headrace.scaffold.service import of_project
from headrace.stack import manifest

_MARKER: Final = b"<<<<<<< "
_ERROR: Final = 128
"""From here on an exit code of git is a failure, below the number of conflicts."""


class Fate(StrEnum):
    """What becomes of a file."""

    ADDED = "added"
    UPDATED = "updated"
    MERGED = "merged"
    CONFLICT = "conflict"
    REMOVED = "removed"
    KEPT = "kept, though no longer part of the template"
    DELETED = "left deleted"


class Change(Struct, frozen=True):
    """What an upgrade does to one file."""

    path: str
    fate: Fate
    file: File | None = None
    """What is written; None: nothing."""


class Upgrade(Struct, frozen=True):
    """What is to be done."""

    before: Lock
    rendering: Rendering
    changes: list[Change]

    @property
    def conflicts(self) -> list[str]:
        """Files that have to be resolved by hand."""
        return [c.path for c in self.changes if c.fate is Fate.CONFLICT]


def plan(root: Path) -> Upgrade:
    """Looks at a project and at what this release would generate from its manifest. Writes nothing."""
    folder = Folder(root)
    lock, base = record.recall(folder)
    rendering = rendered(of_project(manifest.load(root / "stack.yaml"), lock.type))
    unresolved = [p for p, f in base.items() if not f.seeded and _MARKER in b"\n" + (folder.read(p) or b"")]
    if unresolved:
        raise ConfigurationError(f"{', '.join(unresolved)}: still with the marks of a conflict; resolve them first")
    return Upgrade(lock, rendering, _changes(folder, base, rendering.files))


def apply(root: Path, upgrade: Upgrade) -> None:
    """Does it."""
    folder = Folder(root)
    for change in upgrade.changes:
        if change.fate is Fate.REMOVED:
            folder.remove(change.path)
        elif change.file is not None:
            folder.write(change.path, change.file)
    record.keep(folder, upgrade.rendering.lock, upgrade.rendering.files)


def check_clean(root: Path) -> None:
    """Raises ConfigurationError unless everything is committed: only then nothing can be lost."""
    said = subprocess.run(  # noqa: S603 - our own words, no shell
        [_git(), "-C", root, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise ConfigurationError(f"{root} is not in a git repository; commit it to one, or say --allow-dirty")
    if said.stdout:
        raise ConfigurationError(f"{root} has changes that are not committed; commit them, or say --allow-dirty")


def _git() -> str:
    if (found := shutil.which("git")) is None:
        raise ConfigurationError("git is needed to merge; install it")
    return found


def _changes(folder: Folder, base: Mapping[str, File], new: Mapping[str, File]) -> list[Change]:
    changes = (
        _change(path, base.get(path), folder.read(path), new.get(path)) for path in sorted(base.keys() | new.keys())
    )
    return [change for change in changes if change is not None]


def _change(path: str, base: File | None, ours: bytes | None, new: File | None) -> Change | None:
    if new is None:
        if base is None or base.seeded or ours is None:
            return None
        return Change(path, Fate.REMOVED if ours == base.data else Fate.KEPT)
    if ours is None:
        if base is None:
            return Change(path, Fate.ADDED, new)
        return None if base.data == new.data or new.seeded else Change(path, Fate.DELETED)
    if ours == new.data or new.seeded or (base is not None and base.data == new.data):
        return None
    if base is not None and ours == base.data:
        return Change(path, Fate.UPDATED, new)
    merged, conflicts = _merged(ours, base.data if base is not None else b"", new.data)
    return Change(path, Fate.CONFLICT if conflicts else Fate.MERGED, File(merged, executable=new.executable))


def _merged(ours: bytes, base: bytes, new: bytes) -> tuple[bytes, bool]:
    """All three in one, and whether there are conflicts, which are marked."""
    with tempfile.TemporaryDirectory() as name:
        places = []
        for part, data in (("yours", ours), ("before", base), ("template", new)):
            places.append(Path(name) / part)
            places[-1].write_bytes(data)
        labels = [word for place in places for word in ("-L", place.name)]
        said = subprocess.run(  # noqa: S603 - as above
            [_git(), "merge-file", "-p", "--diff3", *labels, *places], capture_output=True, check=False
        )
    if said.returncode >= _ERROR or said.returncode < 0:
        raise ConfigurationError(f"git merge-file failed: {said.stderr.decode(errors='replace').strip()}")
    return said.stdout, said.returncode > 0

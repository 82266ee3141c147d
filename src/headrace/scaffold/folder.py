"""A project's folder: what may be written there, and how. Nothing outside of it, through no link, over nothing unseen."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from headrace.errors import ConfigurationError
from headrace.scaffold.render import File


class Folder:
    """The folder of one project."""

    def __init__(self, root: Path) -> None:
        """It need not exist yet."""
        self.root = root

    def place(self, path: str) -> Path:
        """Where a file goes. Raises ConfigurationError if that is outside, or behind a symbolic link."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or not pure.parts or any(part in ("", ".", "..") for part in path.split("/")):
            raise ConfigurationError(f"{path}: expected a path inside the project")
        place = self.root
        for part in pure.parts:
            place /= part
            if place.is_symlink():
                raise ConfigurationError(f"{place} is a symbolic link; nothing is written through it")
        return place

    def read(self, path: str) -> bytes | None:
        """What is there; None: nothing."""
        place = self.place(path)
        if not place.exists():
            return None
        if not place.is_file():
            raise ConfigurationError(f"{place} is not a file")
        return place.read_bytes()

    def check_free(self, files: Mapping[str, File]) -> None:
        """Raises ConfigurationError if one of them is there, or cannot be, with nothing written."""
        if self.root.is_symlink() or (self.root.exists() and not self.root.is_dir()):
            raise ConfigurationError(f"{self.root} is not a folder")
        there = [path for path in files if os.path.lexists(self.place(path))]
        there += [path for path in files if self.blocked(path)]
        if there:
            shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")  # noqa: PLR2004
            raise ConfigurationError(f"{self.root} has {shown} already; nothing was written")

    def blocked(self, path: str) -> bool:
        """Whether something that is no folder is where a file's folder would be."""
        return any(os.path.lexists(parent) and not parent.is_dir() for parent in self.place(path).parents)

    def write(self, path: str, file: File) -> None:
        """Puts it there, whole or not at all; what was there keeps its mode."""
        place = self.place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o644
        number, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        new = Path(name)
        try:
            with os.fdopen(number, "wb") as out:
                out.write(file.data)
            new.chmod(mode | (0o111 if file.executable else 0))
            new.replace(place)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def remove(self, path: str) -> None:
        """Takes it away."""
        self.place(path).unlink(missing_ok=True)

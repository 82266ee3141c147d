"""The release before, for the rolling upgrade."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def previous_release(repository: Path, folder: Path) -> Path | None:
    """The sources before the last change of `src`, ready to be run; None if this is no git checkout with such a commit."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(repository)]
    changed = subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", "src"], check=False, capture_output=True
    ).returncode
    found = subprocess.run(
        [*git, "log", "-2", "--format=%H", "--", "src"], check=False, capture_output=True, text=True
    ).stdout.split()
    if not found or (not changed and len(found) < 2):
        return None
    commit = found[0] if changed else found[1]
    target = folder / "previous"
    target.mkdir()
    archive = subprocess.run([*git, "archive", commit, "src"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive, check=True)
    return target / "src"

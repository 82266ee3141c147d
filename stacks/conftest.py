"""The package as a wheel, which generated services install."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest_plugins = ["tests.absent"]

ROOT = Path(__file__).resolve().parents[1]


def run(words: Sequence[object], folder: Path, **environment: str) -> str:
    """Runs a command to its end; its output is the failure's message."""
    said = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert said.returncode == 0, f"{' '.join(map(str, words))} ended with {said.returncode}:\n{said.stdout[-6_000:]}"
    return said.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where pip finds this version."""
    folder = tmp_path_factory.mktemp("wheels")
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], ROOT)
    return folder


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """`headrace` as a user has it: from the wheel, in an environment of its own."""
    folder = tmp_path_factory.mktemp("tool")
    run([sys.executable, "-m", "venv", folder], ROOT)
    run([folder / "bin" / "pip", "install", "-q", "--find-links", wheels, "headrace[stack,embedded]"], ROOT)
    return folder / "bin" / "headrace"

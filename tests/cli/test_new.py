"""`headrace new` and `headrace stack upgrade`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.shell import say

MORE = """\
    - name: bills
      retention: {maxlen: 1000, maxage: 1d}
    - name: orders.accepted"""


def test_a_service_is_there_and_can_be_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = say("new", "shop", "--type", "python-worker")
    assert (said.code, said.out) == (0, "shop: 26 files of python-worker 1.0\n"), said.err
    assert "cd shop && make test" in said.err
    assert say("stack", "lint", "shop/stack.yaml").code == 0
    manifest = tmp_path / "shop" / "stack.yaml"
    manifest.write_text(
        manifest.read_text().replace("timeout: 30s", "timeout: 40s").replace("maxage: 1d", "maxage: 2d")
    )
    assert "not a git repository" in say("stack", "upgrade", "shop").err
    for words in (("init", "-q"), ("add", "-A"), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1")):
        subprocess.run(["git", "-C", "shop", *words], check=True)
    planned = say("stack", "upgrade", "shop", "--dry-run")
    assert (planned.code, "src/shop/topics.py" in planned.out) == (0, True)
    assert "retain_s" not in (tmp_path / "shop" / "src" / "shop" / "topics.py").read_text()
    assert say("stack", "upgrade", "shop").out == planned.out
    assert "retain_s=172800" in (tmp_path / "shop" / "src" / "shop" / "topics.py").read_text()
    subprocess.run(
        ["git", "-C", "shop", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "2"], check=True
    )
    manifest.write_text(manifest.read_text().replace("    - name: orders.accepted", MORE))
    again = say("stack", "upgrade", "shop")
    assert (again.code, again.out, "nothing to do" in again.err) == (0, "", True)
    manifest.write_text(manifest.read_text().replace("- name: orders\n", "- name: orders\n      partitions: 4\n"))
    assert "has one partition where it exists" in say("stack", "upgrade", "shop", "--dry-run").err


def test_it_says_how_the_service_finds_a_headrace_that_is_on_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = say("new", "shop", "--type", "python-worker").err.splitlines()
    (command,) = (line for line in said if "pip wheel" in line)
    subprocess.run(["/bin/sh", "-c", f'{command} && test -n "$PIP_FIND_LINKS"'], check=True)
    assert [path.name.partition("-")[0] for path in (tmp_path / "wheels").iterdir()] == ["headrace"]
    assert "pip wheel" not in say("new", "till", "--type", "rust-axum").err


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = say("new", "shop", "--type", "python-fastapi", "--dry-run")
    assert said.code == 0
    assert "src/shop/api.py" in said.out.splitlines()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("new", "Shop", "--type", "python-worker"), "name: expected 1 to 63"),
        (("new", "shop", "--type", "python-worker", "--events", "kafka"), "there are no templates for it yet"),
        (("new", "shop", "--type", "python-worker", "--into", "nowhere"), "there is no such folder"),
        (("new", "shop", "--type", "python-worker", "--stack", "none.yaml"), "none.yaml"),
        (("stack", "upgrade", "."), "no .headrace/lock.json"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = say(*words)
    assert said.code == 2
    assert says in said.err
    assert not list(tmp_path.iterdir())

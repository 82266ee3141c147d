"""Runs the command as its users do, and takes out of its output what differs from run to run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from headrace.cli.main import main

_FILTERS: Final = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"), "TIME"),
    (re.compile(r"\b\d{13}-\d+\b"), "TOKEN"),
    (re.compile(r"\b[0-9a-f]{16}(?=\.\d+\.\d+)"), "PRODUCER"),
    (re.compile(r"unix:/+\S*?/(s|server\.sock)\b"), "URL"),
    (re.compile(r"/tmp/[^\s'\"]+"), "PATH"),
    (re.compile(r"\b\d+\.\d+s\b"), "SECONDS"),
    (re.compile(r"\b\d+(\.\d+)? (B|[KMG]iB)"), "SIZE"),
    (re.compile(r"\bprocess \d+"), "process PID"),
    (re.compile(r" +"), " "),
)
_WAIT_S: Final = 60.0


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def screen(self) -> str:
        """Exit code, stdout and stderr, filtered: what a snapshot holds."""
        text = self.out + self.err
        for pattern, word in _FILTERS:
            text = pattern.sub(word, text)
        lines = (line.strip() for line in text.splitlines())
        return "\n".join((*lines, f"-> {self.code}"))


def say(*words: str) -> Result:
    """Runs a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as e:  # how the argument parser ends
            code = e.code if isinstance(e.code, int) else 1
    return Result(code, out.getvalue(), err.getvalue())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would choose a server, and with the package on the path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"HEADRACE_URL", "REDIS_URL", "HEADRACE_DURABILITY"}
    }
    package = Path(sys.modules["headrace"].__file__ or "").parent.parent
    return {**kept, "PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1", **(extra or {})}


def run(*words: str, stdin: bytes = b"", cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Runs a command line as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *words],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(env),
        timeout=_WAIT_S,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def running(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command line as a process that goes on; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(env),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def line_of(process: subprocess.Popen[bytes]) -> str:
    """The next line of its stdout."""
    assert process.stdout is not None
    return process.stdout.readline().decode()


def on_terminal(*words: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs a command line whose stdout and stderr are a terminal; its exit code and what the terminal got."""
    ours, theirs = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while chunk := os.read(ours, 65_536):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        command = [sys.executable, "-m", "headrace", *words]
        done = subprocess.run(
            command, input=stdin, stdout=theirs, stderr=theirs, env=environment(env), timeout=_WAIT_S, check=False
        )
    finally:
        os.close(theirs)
        reader.join(_WAIT_S)
        os.close(ours)
    return done.returncode, b"".join(shown).decode().replace("\r\n", "\n")

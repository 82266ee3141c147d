"""A real PostgreSQL for the tests, in a private directory: as its own user if we are root, which it refuses to run as."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.absent import not_run
from tests.servers import free_port, wait_for


def _programs() -> Path | None:
    """Where the newest installed server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4]))
    if found:
        return found[-1].parent
    path = shutil.which("postgres")
    return None if path is None else Path(path).parent


def _as_its_user() -> list[str]:
    """The words before a command that runs it as a user whom the server accepts."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


class Postgres:
    """One server on a port of its own; leaving it ends it and removes its data."""

    def __init__(self) -> None:
        """Ends the test as not run if the program is absent."""
        programs = _programs()
        if programs is None:
            not_run("postgresql", "no /usr/lib/postgresql/*/bin/postgres, and none on PATH")
        if os.getuid() == 0:
            with contextlib.suppress(KeyError):
                pwd.getpwnam("postgres")
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        if os.getuid() == 0:
            shutil.chown(self._directory, "postgres", "postgres")
        words = [*_as_its_user(), str(self._programs / "initdb"), "-D", str(self._directory / "data"), "-U", "postgres"]
        made = subprocess.run(
            [*words, "-A", "trust", "--locale=C", "--encoding=UTF8", "--no-sync"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        self.start()
        return self

    def start(self) -> None:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
        }
        words = [f"-c{name}={value}" for name, value in options.items()]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_its_user(), str(self._programs / "postgres"), "-D", str(self._directory / "data"), *words],
                stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        wait_for(self._ready, "PostgreSQL to be ready", 20)

    def _ready(self) -> bool:
        words = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0

    def kill(self) -> None:
        """As a crash."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def __exit__(self, *exc: object) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of the run."""
    with Postgres() as it:
        yield it

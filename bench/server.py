"""A fresh server for one measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from headrace.embedded.server import find_binary

_JEMALLOC = sorted(Path("/usr/lib").glob("*/libjemalloc.so.2"))


class Server:
    """A private server with an empty append-only file."""

    def __init__(self, kind: str, fsync: str) -> None:
        """`kind`: valkey or redis; `fsync`: always or everysec. Raises FileNotFoundError if there is none of that kind."""
        binary = find_binary() if kind == "valkey" else shutil.which("redis-server")
        if binary is None:
            raise FileNotFoundError(kind)
        self._dir = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        socket = self._dir / "s"
        environment = dict(os.environ)
        self.allocator = "its own"
        if kind == "valkey" and _JEMALLOC:
            environment["LD_PRELOAD"] = str(_JEMALLOC[0])
            self.allocator = "jemalloc preloaded"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(self._dir), "--save", ""]
        aof = ["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0"]
        self._process = subprocess.Popen([str(binary), *options, *aof], env=environment, stdout=subprocess.DEVNULL)
        self.url = f"unix://{socket}"
        self.client = redis.Redis(unix_socket_path=str(socket))
        for _ in range(500):
            try:
                self.client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds the server has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def version(self) -> str:
        """Name and version."""
        info = self.client.info("server")
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def __enter__(self) -> Self:
        """It is running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it and deletes its data."""
        self.client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._dir, ignore_errors=True)

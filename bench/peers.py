"""Other libraries on the same work: `PEERS="faststream taskiq dramatiq"`, each in an environment of its own that is kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

from bench.event import Figures
from bench.server import Server
from bench.stages import figures_of

HOME: Final = Path(__file__).parent.parent
CACHE: Final = Path(os.environ.get("HEADRACE_BENCH_CACHE", Path.home() / ".cache" / "headrace" / "bench"))
PROGRAMS: Final = {
    "faststream": "faststream_stream",
    "taskiq": "taskiq_stream",
    "dramatiq": "dramatiq_threads",
}


class Peer(Struct, frozen=True):
    """A library, ready to be run."""

    name: str
    title: str
    module: str
    python: Path
    events: int


def prepare(name: str) -> Peer:
    """Makes the environment if it is not there. Raises KeyError (unknown), CalledProcessError (pip's words on stderr)."""
    module = PROGRAMS[name]
    text = (Path(__file__).parent / "rivals" / f"{module}.py").read_text(encoding="utf-8")
    required = re.findall(r"^requires: (.+)$", text, re.MULTILINE)[0].split()
    python = environment(name, required)
    title = text.splitlines()[0].strip('"').rstrip(".")
    return Peer(name, title, module, python, int(re.findall(r"^events: (\d+)$", text, re.MULTILINE)[0]))


def environment(name: str, required: list[str]) -> Path:
    """The interpreter of an environment with what is required, made if it is not there. Raises CalledProcessError (pip's words on stderr)."""
    folder = CACHE / name
    stamp = folder / "requires"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text().split() != required:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *required]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        stamp.write_text(" ".join(required))
    return python


def measure(peer: Peer, kind: str, fsync: str, *, quick: bool) -> tuple[Figures, Figures]:
    """What publishing and then consuming everything gives. Raises NotExact, CalledProcessError."""
    count = peer.events // 5 if quick else peer.events
    with Server(kind, fsync) as server:
        own = {**os.environ, "HEADRACE_URL": server.url, "PYTHONPATH": str(HOME)}
        out = []
        for what in ("publish", "consume"):
            before = server.cpu_s()
            command = [str(peer.python), "-m", f"bench.rivals.{peer.module}", what, str(count)]
            run = subprocess.run(command, env=own, cwd=HOME, check=True, capture_output=True, text=True, timeout=120)
            figures = figures_of(run.stdout, f"{peer.name} {what}")
            figures["server_us"] = (server.cpu_s() - before) / count * 1e6
            out.append(figures)
    return out[0], out[1]

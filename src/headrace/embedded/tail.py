"""What an unclean stop leaves at the end of an append-only file: a torn tail, which is cut off. Damage elsewhere is told, and left.

Read by `keeper.py` by path, as that one is run: it loads the standard library alone.
"""

from __future__ import annotations

import mmap
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

_HEAD: Final = re.compile(rb"\*(\d{1,19})\r\n|#[^\r\n]*\r\n")
"""How many words a command has, or a remark of the server."""
_LENGTH: Final = re.compile(rb"\$(\d{1,19})\r\n")
_BEGUN: Final = re.compile(rb"[*$]\d{0,19}\r?|#[^\r\n]*\r?")
"""Either of them, torn."""
_COMMAND: Final = re.compile(rb"\r\n\*\d{1,19}\r\n\$\d{1,19}\r\n")
_BLOCK_BYTES: Final = 65_536


def mend(path: Path, directory: Path, binary: str, checker: str) -> str:
    """Cut a torn tail off; says what it cut, or nothing. What is cut is saved as `cut-TIME-NAME` in `directory` first.

    `checker`: the name (argv[0]) under which the binary checks such a file. Raises OSError, RuntimeError (damage: nothing was changed).
    """
    verdict = _check(binary, checker, path)
    if verdict.returncode == 0:
        return ""
    found = re.search(r"ok_up_to=(\d+)", verdict.stdout)
    if found is None:
        raise RuntimeError(f"the data file {path} could not be checked: {verdict.stdout.strip()[-300:]}")
    good, size = int(found[1]), path.stat().st_size
    bad = damage(path, good)
    if bad is not None:
        by_hand = f"exec -a {checker} {shlex.quote(binary)} --fix {shlex.quote(str(path))}"
        raise RuntimeError(
            f"the data file {path} is damaged at byte {bad} of {size}, and no unfinished write looks like that: a disk may be failing. "
            f"Nothing was changed. Its first {good} bytes are whole; the {size - good} after them hold writes that were acknowledged. "
            f"Copy {directory}, then put an earlier copy of it in its place; or run `bash -c {shlex.quote(by_hand)}`, "
            f"which gives up all that comes after byte {good}"
        )
    saved = directory / f"cut-{time.time_ns()}-{path.name}"
    with path.open("rb") as source, saved.open("wb") as target:
        source.seek(good)
        shutil.copyfileobj(source, target)
    verdict = _check(binary, checker, path, "--fix")
    if verdict.returncode != 0:
        raise RuntimeError(f"the data file {path} could not be repaired: {verdict.stdout.strip()[-300:]}")
    return f"{path.name}: {size - good} bytes of an unfinished write cut off, saved as {saved.name}"


def _check(binary: str, checker: str, path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the server's own checker, answering its question with yes.

    It says how far the file is good, but not why the rest is bad: a torn line and a changed one read alike, up to Valkey 9 and Redis 7.
    """
    words = [checker, *flags, str(path)]
    return subprocess.run(  # noqa: S603 - the server's own binary
        words, executable=binary, input="y\n", capture_output=True, text=True, errors="replace", check=False
    )


def damage(path: Path, start: int) -> int | None:
    """Where the file is damaged behind `start`, or None: the rest is the beginning of valid writes, as an unclean stop leaves it.

    It may end anywhere, then go on with zeros, which file systems leave after a power loss. Raises OSError.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = _end(data, start)
        at, within = start, False
        while at < end:
            head = _HEAD.match(data, at, end)
            if head is None:
                return None if _BEGUN.fullmatch(data, at, end) else at
            begin, at = at, head.end()
            for n in range(int(head[1] or 0)):
                word = _LENGTH.match(data, at, end)
                if word is None:
                    return None if at == end or _BEGUN.fullmatch(data, at, end) else at
                close = word.end() + int(word[1])
                if not b"\r\n".startswith(data[close : close + 2] if close + 2 <= end else data[close:end]):
                    return at
                if close + 2 > end:  # torn, unless it is the length that is wrong, and swallows other commands
                    return at if _COMMAND.search(data, word.end(), end) else None
                name = data[word.end() : close].lower() if n == 0 and close - word.end() < len("multi ") else b""
                if (name == b"multi" and within) or (name == b"exec" and not within):
                    return begin
                if within and head[1] == b"1" and len(name) == len("exec") and name != b"exec":
                    return begin  # no such command writes anything: this one ended the transaction
                within = name == b"multi" or (within and name != b"exec")
                at = close + 2
        return None if within or end < len(data) else start  # else: the checker knows something that we do not


def _end(data: mmap.mmap, start: int) -> int:
    """Where the zeros begin that the file ends with; its end, if there are none. A whole command ends with a line end."""
    end = len(data)
    while end > start:
        block = data[max(start, end - _BLOCK_BYTES) : end]
        kept = len(block.rstrip(b"\0"))
        end -= len(block) - kept
        if kept:
            break
    return end

"""`.headrace/`: from what a project was generated. The last rendering is kept there, so that a newer one can be merged without the old release."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from headrace.errors import ConfigurationError
from headrace.scaffold.folder import Folder
from headrace.scaffold.render import File
from headrace.stack.manifest import StackType, System

LOCK: Final = ".headrace/lock.json"
BASE: Final = ".headrace/base.tgz"
_SEEDED: Final = "seeded"


class Lock(Struct, frozen=True, forbid_unknown_fields=True):
    """What `.headrace/lock.json` says."""

    name: str
    """Of the service: packages and images are called by it."""
    headrace: str
    """The release that generated it last."""
    type: StackType
    events: System
    template: str
    """Its version."""


def keep(folder: Folder, lock: Lock, files: Mapping[str, File]) -> None:
    """Writes the record; last of all, so that an interrupted command can be repeated."""
    folder.write(BASE, File(_packed(files)))
    folder.write(LOCK, File(msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n"))


def recall(folder: Folder) -> tuple[Lock, dict[str, File]]:
    """The record. Raises ConfigurationError if there is none, or it is damaged."""
    lock, base = folder.read(LOCK), folder.read(BASE)
    if lock is None or base is None:
        raise ConfigurationError(
            f"{folder.root}: no {LOCK} and {BASE}, so it is not known what was generated; bring them back from version control"
        )
    try:
        return msgspec.json.decode(lock, type=Lock), _unpacked(base)
    except (msgspec.DecodeError, tarfile.TarError, OSError, EOFError, KeyError, zlib.error) as e:
        raise ConfigurationError(
            f"{folder.root}: {LOCK} or {BASE} is damaged ({e}); bring them back from version control"
        ) from e


def _packed(files: Mapping[str, File]) -> bytes:
    """The same bytes for the same files."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(files):
            file = files[path]
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(file.data), 0o755 if file.executable else 0o644
            if file.seeded:
                info.pax_headers = {f"headrace.{_SEEDED}": "1"}
            tar.addfile(info, io.BytesIO(file.data))
    return gzip.compress(inner.getvalue(), mtime=0)


def _unpacked(data: bytes) -> dict[str, File]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            if content is not None:
                seeded = f"headrace.{_SEEDED}" in info.pax_headers
                files[info.name] = File(content.read(), seeded, bool(info.mode & 0o100))
    return files

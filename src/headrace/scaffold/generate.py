"""A new service: everything is rendered and checked before the first file is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from headrace.errors import ConfigurationError
from headrace.scaffold import record, render, template
from headrace.scaffold.folder import Folder
from headrace.scaffold.record import Lock
from headrace.scaffold.render import File
from headrace.scaffold.service import Service, words
from headrace.stack import manifest
from headrace.version import VERSION

SCHEMA: Final = ".headrace/stack.schema.json"


class Rendering(Struct, frozen=True):
    """A service as files, by their paths."""

    lock: Lock
    files: dict[str, File]


def rendered(service: Service) -> Rendering:
    """Renders a service with the templates of this release."""
    source = template.load(service.kind, service.events)
    known = words(service, source.version)
    files = render.render(source, known)
    schema = msgspec.json.format(msgspec.json.encode(manifest.schema()), indent=2) + b"\n"
    return Rendering(
        Lock(service.name, VERSION, service.kind, service.events, source.version), {**files, SCHEMA: File(schema)}
    )


def check(rendering: Rendering, target: Path, *, into: bool) -> None:
    """Raises ConfigurationError if it cannot be written there: to a new folder, or beside what is there."""
    if into and not target.is_dir():
        raise ConfigurationError(f"--into {target}: there is no such folder")
    free = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if not into and os.path.lexists(target) and not free:
        raise ConfigurationError(f"{target} is there already; nothing was written. To add to it, say --into {target}")
    Folder(target).check_free({**rendering.files, record.LOCK: File(b""), record.BASE: File(b"")})


def create(rendering: Rendering, target: Path) -> None:
    """Writes it into a folder of its own, which is there whole or not at all. Raises ConfigurationError."""
    check(rendering, target, into=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(rendering, Folder(new))
            new.chmod(0o755)
            new.replace(target)  # also over an empty folder
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    except OSError as e:
        raise ConfigurationError(f"{target} cannot be written: {e}") from e


def add(rendering: Rendering, target: Path) -> None:
    """Writes it beside what is in a folder, or nothing. Raises ConfigurationError."""
    check(rendering, target, into=True)
    try:
        _write(rendering, Folder(target))
    except OSError as e:
        for path in (*rendering.files, record.LOCK, record.BASE):
            with contextlib.suppress(OSError):
                Folder(target).remove(path)
        raise ConfigurationError(f"{target} cannot be written: {e}; what was written is removed") from e


def _write(rendering: Rendering, folder: Folder) -> None:
    for path, file in rendering.files.items():
        folder.write(path, file)
    record.keep(folder, rendering.lock, rendering.files)

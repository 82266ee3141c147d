"""A template: the files of its layers, as they lie in the package."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import msgspec
from msgspec import Struct

from headrace.backends.redis.node import load_script
from headrace.errors import ConfigurationError
from headrace.stack.manifest import StackType, System

_TEMPLATES: Final = "templates"
_RENDERED: Final = ".j2"
_DOT: Final = "dot_"
"""Stands for the dot of a name such as `.gitignore`, which would mean something to the tools of this project."""


class Source(Struct, frozen=True):
    """One file of a template."""

    path: str
    """Where it goes, relative to the project; may hold expressions."""
    data: bytes
    rendered: bool
    """Whether `data` holds expressions, too."""
    seeded: bool
    """Written once, and the user's from then on."""
    executable: bool


class Role(Struct, frozen=True, forbid_unknown_fields=True):
    """A process of the service, for compose and Kubernetes. Texts may hold expressions."""

    name: str
    command: tuple[str, ...] = ()
    """Empty: what the image runs."""
    port: int = 0
    """Of HTTP, with the probes; 0: none."""
    serves: int = 0
    """Of what callers use, if that is another one."""
    live: str = ""
    ready: str = ""
    """Paths that say so."""


class _Description(Struct, frozen=True, forbid_unknown_fields=True):
    """`template.toml`."""

    version: str
    summary: str
    layers: tuple[str, ...]
    """Folders with files; of two files for one path the later layer's is taken."""
    seeded: tuple[str, ...] = ()
    """Patterns of paths."""
    executable: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    copies: dict[str, str] = {}
    """Path -> what of this package is there byte for byte: `script:NAME` or `golden:NAME`."""
    worker: str = ""
    """The role that handles events."""
    url_variable: str = "HEADRACE_URL"
    """What the service reads the server's address from."""


class Template(Struct, frozen=True):
    """What a type of service consists of."""

    type: StackType
    version: str
    summary: str
    sources: tuple[Source, ...]
    roles: tuple[Role, ...]
    worker: str
    url_variable: str


def load(kind: StackType, events: System) -> Template:
    """The template with the files of this event system. Raises ConfigurationError if there are none yet."""
    home = resources.files("headrace") / _TEMPLATES
    file = home / f"{kind}.toml"
    if not file.is_file():
        raise ConfigurationError(f"--type {kind}: there is no template for it yet")
    described = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _Description)
    found: dict[str, Source] = {}
    for layer in described.layers:
        for folder in (home / layer / "files", home / layer / events):
            if not folder.is_dir():
                continue
            for path, file in _walk(folder):
                found[path.removesuffix(_RENDERED)] = _source(described, path, file)
    found |= {path: _copied(path, what) for path, what in described.copies.items()}
    if not any((home / layer / events).is_dir() for layer in described.layers):
        raise ConfigurationError(f"--events {events}: there are no templates for it yet; redis-streams has them")
    return Template(
        kind,
        described.version,
        described.summary,
        tuple(found[path] for path in sorted(found)),
        described.roles,
        described.worker,
        described.url_variable,
    )


def _walk(folder: Traversable, at: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        name = "." + entry.name.removeprefix(_DOT) if entry.name.startswith(_DOT) else entry.name
        if entry.is_dir():
            if name != "__pycache__":
                yield from _walk(entry, f"{at}{name}/")
        else:
            yield at + name, entry


def _copied(path: str, what: str) -> Source:
    kind, _, name = what.partition(":")
    vector = resources.files("headrace.testing") / "golden" / f"{name}.json"
    data = load_script(name).text.encode() if kind == "script" else vector.read_bytes()
    return Source(path, data, rendered=False, seeded=False, executable=False)


def _source(described: _Description, path: str, file: Traversable) -> Source:
    target = path.removesuffix(_RENDERED)

    def is_one_of(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(target, pattern) for pattern in patterns)

    return Source(
        target,
        file.read_bytes(),
        rendered=path.endswith(_RENDERED),
        seeded=is_one_of(described.seeded),
        executable=is_one_of(described.executable),
    )

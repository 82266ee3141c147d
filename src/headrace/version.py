"""The version, as a constant: the package metadata is built from it, and the command line prints it without importing anything."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"

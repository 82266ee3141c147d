"""A YAML file whose parts know their lines, so that an error can say where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import ConfigurationError

Path_ = Sequence[str | int]
"""Keys and places in lists, from the outside in."""


class Document:
    """One file."""

    def __init__(self, path: Path) -> None:
        """Reads it. Raises ConfigurationError if it cannot be read, or is no YAML."""
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(f"{path}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigurationError(f"{path}: cannot be read: {e}") from None
        self.text = text
        try:
            self.value: Any = yaml.safe_load(text)
            self._root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as e:
            line = e.problem_mark.line + 1 if e.problem_mark is not None else 1
            raise ConfigurationError(f"{path}:{line}: not YAML: {e.problem or e.context}") from None
        except (yaml.YAMLError, RecursionError) as e:
            raise ConfigurationError(f"{path}: not YAML: {e}") from None
        if not isinstance(self.value, dict):
            raise ConfigurationError(f"{path}: expected a mapping with the key `quality`")

    def line(self, at: Path_) -> int:
        """The line, from 1, of the deepest part of this path that is there."""
        node, line = self._root, 1
        for word in at:
            found: tuple[Any, Any] | None = None
            if isinstance(node, yaml.MappingNode):
                found = next((pair for pair in node.value if pair[0].value == word), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(word, int) and word < len(node.value):
                found = (node.value[word], node.value[word])
            if found is None:
                break
            name, node = found
            line = name.start_mark.line + 1
        return line

    def error(self, at: Path_, what: str) -> ConfigurationError:
        """An error at this place."""
        return ConfigurationError(f"{self.path}:{self.line(at)}: {said(at)}: {what}")


def said(at: Path_) -> str:
    """A path as people write it."""
    out = ""
    for word in at:
        out += f"[{word}]" if isinstance(word, int) else f".{word}" if out else str(word)
    return out or "the file"

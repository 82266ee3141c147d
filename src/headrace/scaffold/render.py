"""Renders a template: names and texts in, files out. Touches no disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
import msgspec
from jinja2.sandbox import SandboxedEnvironment
from msgspec import Struct

from headrace.scaffold.template import Template


class File(Struct, frozen=True):
    """What is to be at a path."""

    data: bytes
    seeded: bool = False
    executable: bool = False


def render(template: Template, words: Mapping[str, Any]) -> dict[str, File]:
    """The files by their paths, relative to the project. A file of nothing but blanks is left out."""
    environment = SandboxedEnvironment(
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # source code and settings, not pages
    )
    environment.filters["quoted"] = _quoted

    def expanded(text: str) -> str:
        return environment.from_string(text).render(words)

    roles = [
        {**msgspec.to_builtins(role), "name": expanded(role.name), "command": list(map(expanded, role.command))}
        for role in template.roles
    ]
    words = {**words, "roles": roles, "worker": expanded(template.worker), "url_variable": template.url_variable}
    files: dict[str, File] = {}
    for source in template.sources:
        path = expanded(source.path)
        data = source.data
        if source.rendered:
            data = expanded(data.decode()).encode()
            if not data.strip() and source.data.strip():
                continue
        files[path] = File(data, source.seeded, source.executable)
    return files


def _quoted(text: str) -> str:
    """A string in double quotes, as JSON, YAML and TOML read it."""
    return json.dumps(text, ensure_ascii=False)

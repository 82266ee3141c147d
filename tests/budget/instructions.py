"""Instructions of the interpreter in functions of the package: a count that does not depend on the machine's speed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import headrace

HOME = str(Path(headrace.__file__).parent)
_TOOL = "headrace budget"


class Instructions:
    """Counts while it is entered."""

    def __init__(self) -> None:
        self._by: Counter[int] = Counter()
        """By the identity of the code object: its hash is computed anew each time, which takes longer than all else here."""
        self._codes: dict[int, CodeType] = {}
        self._tracer: Any = None
        self._tool = -1

    @property
    def by_function(self) -> Counter[str]:
        """Instructions by function, named `file function`, of files below the package."""
        out: Counter[str] = Counter()
        for identity, n in self._by.items():
            code = self._codes[identity]
            out[f"{Path(code.co_filename).relative_to(HOME)} {code.co_qualname}"] += n
        return out

    if sys.version_info >= (3, 12):  # whose sys.settrace may miss every instruction (3.12.1 does in a fresh process)

        def __enter__(self) -> Self:
            by, codes, monitoring = self._by, self._codes, sys.monitoring

            def count(code: CodeType, _: int) -> Any:
                identity = id(code)
                if identity not in codes:
                    if not code.co_filename.startswith(HOME):
                        return monitoring.DISABLE
                    codes[identity] = code
                by[identity] += 1
                return None

            self._tool = next(n for n in range(6) if monitoring.get_tool(n) is None)
            monitoring.use_tool_id(self._tool, _TOOL)
            monitoring.register_callback(self._tool, monitoring.events.INSTRUCTION, count)
            monitoring.set_events(self._tool, monitoring.events.INSTRUCTION)
            return self

        def __exit__(self, *_: object) -> None:
            monitoring = sys.monitoring
            monitoring.set_events(self._tool, monitoring.events.NO_EVENTS)
            monitoring.register_callback(self._tool, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(self._tool)

    else:

        def __enter__(self) -> Self:
            self._tracer = sys.gettrace()
            sys.settrace(self._enter_frame)
            return self

        def __exit__(self, *_: object) -> None:
            sys.settrace(self._tracer)

        def _enter_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
            code, by = frame.f_code, self._by
            if not code.co_filename.startswith(HOME):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            identity = id(code)
            self._codes[identity] = code

            def count(_: FrameType, event: str, __: Any) -> Any:
                if event == "opcode":
                    by[identity] += 1
                return count

            return count

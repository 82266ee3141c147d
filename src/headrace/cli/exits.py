"""Exit codes of the command line. Documented in `headrace --help`."""

from __future__ import annotations

from typing import Final

OK: Final = 0
NO: Final = 1
"""The command did its work and the answer is no: unbalanced, violated, not exact."""
USAGE: Final = 2
NO_SERVER: Final = 3
REFUSED: Final = 4
BUG: Final = 70
INTERRUPTED: Final = 130

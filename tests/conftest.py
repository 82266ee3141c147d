"""What every test has: the servers, and at the end a loud list of what did not run."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.absent", "tests.servers", "tests.postgres"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell; the programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

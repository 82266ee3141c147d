"""Programs of other libraries that do the same work, each in a virtual environment of its own (see bench/peers.py)."""

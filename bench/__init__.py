"""Benchmarks: whole processes on fresh servers, each run checked for exactness. `make bench` or `python -m bench`."""

"""A backend without a server, for tests."""

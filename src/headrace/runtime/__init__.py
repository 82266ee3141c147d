"""Serves an app: takes events, calls handlers, settles."""

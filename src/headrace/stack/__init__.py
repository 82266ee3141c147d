"""Stacks: a manifest that says which event system a service has and why, advice that computes it, and a lint that checks it."""

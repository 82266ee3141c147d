"""The same work with other libraries at their defaults. Each program runs in an environment of its own: `publish` or `work`."""

"""Generated services, built and tested as their users do it: `make test-stacks`. Slow, so apart from `make test`."""

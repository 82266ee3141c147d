"""For tests of programs that use Headrace, and of backends: the conformance suite."""

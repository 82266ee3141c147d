"""Tests of Headrace: on real servers, in random order, warnings are errors."""

"""Benchmarks against the plain alternative, in one run. They are never tests, since machines are shared."""

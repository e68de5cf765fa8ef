"""Benchmarks: each puts ours beside the plain alternative in one run. Never a test: machines are shared."""

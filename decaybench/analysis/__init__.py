"""Compares the records of a study: differences, intervals, verdicts."""

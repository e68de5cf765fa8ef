"""Trains the runs of a study: jobs, the scheduler, and one file for each executor."""

"""Trains runs, one or several at once, and records what happens to their activation functions."""

"""Trains runs, one or several at once."""

"""Renders what was found, for people and for programs. Nothing here computes a result."""

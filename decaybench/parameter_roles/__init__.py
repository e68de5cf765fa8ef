"""Decides what each parameter of a network is, and makes param groups by it."""

"""Kernel activation functions and the paths that compute them."""

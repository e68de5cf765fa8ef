"""The networks. Each is a function (shape, classes, activation, **options) -> module.

``shape`` is (C, H, W) of one image; ``activation(channels)`` makes a new activation module each time.
"""

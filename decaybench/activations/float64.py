"""Sums in float64, which not every device has."""

import torch

WITHOUT = ("mps",)  # kinds of device whose numbers have 32 bits at most


def device_with_float64(device: torch.device) -> torch.device:
    """Returns the device itself, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT else device

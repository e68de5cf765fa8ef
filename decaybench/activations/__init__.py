"""The activations, one file each. Every one is built with the number of channels and its options."""

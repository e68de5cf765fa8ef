"""Data sets as arrays in memory. Nothing here imports torch unless torchvision has to be asked."""

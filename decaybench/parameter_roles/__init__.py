"""What each parameter of a network is, and the param groups that follow from it."""

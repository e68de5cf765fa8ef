"""The strategies: how regularization is applied to a network."""

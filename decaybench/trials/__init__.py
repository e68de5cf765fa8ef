"""The face for somebody else's training loop: a trial gives it a strategy's optimizers, and records what came."""

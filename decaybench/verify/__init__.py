"""Which methods of excluding parameters are the same: every pair, side by side in float64, step by step."""

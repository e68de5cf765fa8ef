"""Shows which methods of excluding parameters are the same, every pair side by side in float64."""

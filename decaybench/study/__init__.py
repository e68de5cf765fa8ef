"""A study and its runs as values: what is asked for, before anything is computed."""

"""Several networks of one structure trained as one, with a replica axis in front."""

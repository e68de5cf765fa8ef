"""Where the runs of a study are trained: here, in processes of this machine, or on a Ray cluster."""

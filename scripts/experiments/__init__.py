"""What the paper ran and printed, and the sweeps of training runs that redo it."""

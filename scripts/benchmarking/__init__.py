"""What the benchmark and the tuner are made of."""

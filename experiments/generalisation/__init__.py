"""What is learned from examples beyond the examples: predicted before any training."""

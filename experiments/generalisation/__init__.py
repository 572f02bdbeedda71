"""Learning or memorising."""

"""Pre-training of molecule encoders: networks and losses, and one loop that knows no files."""

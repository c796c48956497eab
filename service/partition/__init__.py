"""One partition, from its opening to its hand-over, and all its syncs."""

"""One partition: from an opened journal to its hand-over, and all syncs in it."""

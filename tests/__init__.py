"""The tests: one file for each module, and beside them what they share."""

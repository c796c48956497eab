"""A simulated VCDA, written from VCDA's documentation alone."""

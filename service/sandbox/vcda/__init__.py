"""A simulated VCDA, written from its documentation alone."""

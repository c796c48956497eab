"""Programs for developers and CI; the service does not use them."""

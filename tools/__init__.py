"""What people and CI run on the repository, never the service."""

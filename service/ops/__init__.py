"""The operations server: probes, metrics, documents, and what is in flight."""

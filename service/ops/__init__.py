"""The operations server: probes, metrics, documents, and requests in flight."""

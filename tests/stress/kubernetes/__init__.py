"""`make cluster-test`: the deployment on a real cluster, with faults, and every request counted. See `__main__`."""

"""What operators see of a process: metrics, logs, traces."""

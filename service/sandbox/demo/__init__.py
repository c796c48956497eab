"""`vm-sync demo`: Kafka, a simulated VCDA and the service on one machine, with a live view."""

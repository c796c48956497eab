"""Kafka's side: connections, the consumer, topics, and the journal. It knows nothing of VCDA."""

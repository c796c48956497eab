"""An embedded Kafka, a simulated VCDA, and a demo, for a machine without Kafka and VCDA."""

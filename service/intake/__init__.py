"""The consumer group: records from Kafka to the partitions that are assigned to this process."""

"""What a person runs who has neither a Kafka nor a VCDA at hand: both of them, a demo, and measurements."""

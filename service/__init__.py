"""vm-sync: a message on a Kafka topic becomes one sync at VMware Cloud Director Availability, and its end one event.

The modules and folders, in the order in which they are best read; docs/architecture.md lists the files of each folder.

- `sync`: one sync, as states, observations and transitions. Pure; every outcome that a request can have stands there.
- `messages`: bytes to requests, and outcomes and dead letters to bytes. Pure.
- `partition`: one partition: it admits requests, drives their syncs, and is handed over to its next owner.
- `intake`: the consumer group; records from Kafka to the partitions that are assigned to this process.
- `kafka`: the consumer that no record can stop, the topics, and the journal: a partition's durable memory.
- `vcda`: the API's client, each site's limits and circuit breaker, and when a task is polled.
- `observability`, `ops`, `asyncapi`: what operators see, and what other teams read.
- `certificates`: those that TLS takes from files, read again once the files have changed.
- `clock`, `backoff`, `event_loop`: the only place that asks for the time, pauses that double, and the choice of the
  event loop.
- `settings`, `wiring`, `app`, `cli`: what can be set, the making of all parts, the life of a process, the commands.
- `sandbox`: a Kafka and a simulated VCDA for people who have neither; it knows nothing of the service.

Imports go down only; pyproject.toml has the rules, `make check` enforces them, docs/architecture.md draws them.
"""

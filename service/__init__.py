"""vm-sync: a message on a Kafka topic becomes one sync at VMware Cloud Director Availability, and its end one event.

The modules and folders, in the order in which they are best read; docs/architecture.md lists the files of each folder.

- `sync`: one sync, as states, observations and transitions, with every outcome that a request can have. Pure.
- `messages`: decodes requests, encodes outcomes and dead letters. Pure.
- `partition`: one partition (`partition`): admits requests (`admission`), deduplicates them (`deduplication`), drives
  their syncs (`driver`), sends POSTs (`submitter`), ends requests at their deadlines (`expiry`).
- `intake`: the consumer group: takes records from Kafka to the assigned partitions, opens and reopens partitions
  (`supervisor`).
- `kafka`: the consumer, which continues after unreadable records, the topics, and the journal: a partition's durable
  state.
- `vcda`: the API's client, each site's limits and circuit breaker, and when a task is polled.
- `observability`, `ops`, `asyncapi`: metrics, logs and traces; the operations server; the document for other teams.
- `certificates`: TLS certificates from files, reloaded when the files change.
- `checks`, `endpoints`: run the checks of `vm-sync check`, which are in `kafka` and `vcda`; reach an address.
- `clock`, `moments`, `backoff`, `event_loop`, `garbage`: the only source of the time, the form of times, pauses that
  double, the choice of the event loop, and when Python's garbage collector runs.
- `settings`, `wiring`, `app`, `cli`: the settings, the construction of all parts, the life of a process, the commands.
- `live_view`: a live view of syncs at a terminal, for the demo and for `vm-sync top`.
- `sandbox`: an embedded Kafka, a simulated VCDA and a demo; independent of the service's code.

Imports go down only; pyproject.toml has the rules, `make check` enforces them, docs/architecture.md draws them.
"""

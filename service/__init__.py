"""vm-sync: a message on a Kafka topic becomes one sync at VMware Cloud Director Availability, and its end one event.

The modules, in the order in which they are best read:

- `sync`: one sync, as states, observations and transitions. Pure; whatever can become of a request stands there.
- `schemas`, `messages`: the shape of the messages; bytes to requests, outcomes and dead letters to bytes.
- `records`, `journal`: a sync as bytes and back; one partition's durable memory: open, restore, commit.
- `partition`: one partition at work: it admits requests, drives their syncs, hands over. It is made of:
- `work`, `queues`, `deadlines`: a sync as this process works on it; who is next; what is to be looked at again when.
- `commits`, `posting`: changes on their way into the journal; POSTs, which leave only while the partition is ours.
- `balance`: what became of each record read, counted once its commit stands.
- `doubts`: POSTs of unknown fate, whose tasks are looked for before anything else is done.
- `past`, `remembered`: what has ended, kept for as long as it takes to know a duplicate and to pass over its task.
- `restoring`: what all records of a journal come to when a partition is taken over.
- `tools`, `telling`: what all partitions of a process share; an outcome that stands, told to operators.
- `progress`: how far running syncs are, for those who show a bar; off unless a topic is named.
- `connection`: what all clients of Kafka share: idle limits, bounded ends, the way back to the bootstrap servers.
- `start_position`: whether a journal and the requests topic belong together, and where reading begins.
- `consumer`, `intake`: a consumer that no record and no refusal can stop; Kafka's records to the partitions owned here.
- `lanes`, `pacing`, `polling`: each site's traffic rules; when a task is asked after, and together with which others.
- `vcda`: the API: client, session, and every answer translated into an observation.
- `topics`: the topics that the service needs, made and checked.
- `tracing`: spans of each step, within the trace that a request brought along; off unless asked for.
- `metrics`, `logs`, `ops`, `asyncapi`: what operators see, and what other teams read.
- `certificates`: those that TLS takes from files, read again once the files have changed.
- `clock`, `loop`, `settings`, `app`, `cli`: the time, the event loop, what can be set, the wiring, the commands.
- `sandbox`: what a person runs who has neither a Kafka nor a VCDA.

Imports go down only; pyproject.toml has the rule, `make check` enforces it, docs/architecture.md draws it.
"""

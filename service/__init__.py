"""vm-sync: a message on a Kafka topic becomes one sync at VMware Cloud Director Availability, and its end one event.

The modules, in the order in which they are best read:

- `sync`: one sync, as states, observations and transitions. Pure; whatever can become of a request stands there.
- `messages`: bytes to requests, outcomes and dead letters to bytes.
- `journal`: one partition's durable memory: open, restore, commit.
- `partition`: one partition at work: it admits requests, drives their syncs, hands over.
- `intake`: Kafka's records to the partitions that are owned here.
- `lanes`, `polling`: each site's traffic rules, and whose turn it is to be asked about.
- `vcda`: the API: client, session, and every answer translated into an observation.
- `topics`: the topics that the service needs, made and checked.
- `metrics`, `ops`: what operators see.
- `clock`, `settings`, `app`, `cli`: the time, what can be set, the wiring of it all, the commands.
- `sandbox`: what a person runs who has neither a Kafka nor a VCDA.

Imports go down only; pyproject.toml has the rule, and `make check` enforces it.
"""

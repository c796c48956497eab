"""The service measured, beside the same job written the obvious way: `python -m benchmarks`.

Kafka, the simulated VCDA and whatever is measured are processes of their own. Every figure is set against a control
measured in the same run, in turns, over several rounds: a machine that is slow today is slow for both. Nothing here
is a test, and no test asserts a speed.

In reading order:

    sizes       how much of everything: full, quick, tiny
    controls    the same job written the obvious way, and floors: programs of their own
    stage       Kafka and the simulated VCDA, and starting what is measured beside them
    traffic     requests put on the topic, outcomes read from it
    scenarios   a burst, long syncs, many in flight, a steady trickle
    owners      restores, hand-overs, and what remembering costs
    zones       three brokers some milliseconds apart
    virtual     a process with hundreds of sites in virtual time: the real polling and lanes, no sockets
    turns       the probe: how long the event loop takes from one turn to the next
    holds       one kind of work after another, with nothing behind a socket
    standstill  the longest turns: of those, and of the service after a restore
    views       what looking costs: a program of its own, `python -m benchmarks.views`
    long_run    a million requests, of which each is followed: a program of its own, `python -m benchmarks.long_run`
    tally       whether each request has one task and one outcome, in some bytes each
    log_files   a topic's size on the brokers' disks
    results     runs, ratios, and the raw JSON
    plots       pictures of them
    page        docs/performance.md, from the raw JSON
    scaling     docs/scaling.md, likewise
"""

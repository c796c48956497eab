#!/usr/bin/env bash
# Ask for a sync of one VM replication and wait for its outcome: sync.sh REPLICATION_ID. Needs kcat.
# Cancel a request that was sent before: sync.sh REPLICATION_ID OPERATION_ID.
set -euo pipefail

brokers=${KAFKA_BOOTSTRAP_SERVERS:-localhost:9092}
limit=${WAIT_SECONDS:-25200} # an hour more than the service's default deadline
if [ $# = 0 ] || [ $# -gt 2 ]; then
    echo "usage: sync.sh REPLICATION_ID, or sync.sh REPLICATION_ID OPERATION_ID to cancel" >&2
    exit 2 # 1 is for a sync that failed
fi
replication=$1
operation=${2:-kcat-$(date +%s)-$$}
since=$(($(date +%s%3N) - 60000)) # a minute before the request, should the clocks differ
ids=$(printf '{"operationID": "%s", "replicationId": "%s"}' "$operation" "$replication")

# The key keeps the requests for one replication in order, but only if it chooses the partition as Java's clients do.
send() {
    if ! kcat -P -b "$brokers" -t vm-sync.requests -k "$replication" -X topic.partitioner=murmur2_random \
        -X message.timeout.ms=30000; then
        echo "Kafka at $brokers can't be used" >&2
        exit 3 # nothing is known
    fi
}

if [ -n "${2:-}" ]; then
    # A request that still waits ends; one that VCDA has accepted goes on.
    printf '{"cancel": %s, "by": "sync.sh"}\n' "$ids" | send
    exit
fi
printf '%s\n' "$ids" | send

# Without read_committed, outcomes would be seen that never came to be.
outcomes() {
    timeout 60 kcat -C -q -e -b "$brokers" -t "$1" -o "s@$since" -X isolation.level=read_committed -f '%s\n'
}

while [ "$SECONDS" -lt "$limit" ]; do
    outcomes vm-sync.completed | grep -F "\"$operation\"" && exit 0
    outcomes vm-sync.failed | grep -F "\"$operation\"" && exit 1
    sleep 1
done
# An invalid request has no outcome: it becomes a dead letter, which the service's operators see.
echo "No outcome within $limit s; the request may still be in flight." >&2
exit 3

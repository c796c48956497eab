// Ask for a sync of one VM replication and wait for its outcome: go run . REPLICATION_ID
// Cancel a request that was sent before: go run . REPLICATION_ID OPERATION_ID
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

type request struct {
	OperationID   string `json:"operationID"`
	ReplicationID string `json:"replicationId"`
}

type cancelRequest struct {
	Cancel request `json:"cancel"`
	By     string  `json:"by"`
}

// patience is for Kafka: the client itself would try for ever.
const patience = 30 * time.Second

// connect opens a client of a Kafka that answers.
func connect(ctx context.Context, brokers string, options ...kgo.Opt) (*kgo.Client, error) {
	options = append(options, kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.RecordDeliveryTimeout(patience))
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, err
	}
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	if err := client.Ping(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("can't use Kafka at %s: %w", brokers, err)
	}
	return client, nil
}

// sync returns the outcome as it was told, and whether the request failed.
func sync(ctx context.Context, brokers, replicationID string) (outcome []byte, failed bool, err error) {
	client, err := connect(ctx, brokers,
		kgo.ConsumeTopics("vm-sync.completed", "vm-sync.failed"),
		// A minute before the request, should the clocks differ.
		kgo.ConsumeResetOffset(kgo.NewOffset().AfterMilli(time.Now().Add(-time.Minute).UnixMilli())),
		// Without it, outcomes would be seen that never came to be.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return nil, false, err
	}
	defer client.Close()

	asked := request{OperationID: rand.Text(), ReplicationID: replicationID}
	value, err := json.Marshal(asked)
	if err != nil {
		return nil, false, err
	}
	// The key keeps the requests for one replication in order.
	record := &kgo.Record{Topic: "vm-sync.requests", Key: []byte(replicationID), Value: value}
	if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
		return nil, false, err
	}
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, false, err
		}
		for _, record := range fetches.Records() {
			var told request
			if err := json.Unmarshal(record.Value, &told); err == nil && told == asked {
				return record.Value, record.Topic == "vm-sync.failed", nil
			}
		}
	}
}

// cancel cancels a request. It has its outcome if it still waits; one that VCDA has accepted goes on.
func cancel(ctx context.Context, brokers, replicationID, operationID string) error {
	client, err := connect(ctx, brokers)
	if err != nil {
		return err
	}
	defer client.Close()
	value, err := json.Marshal(cancelRequest{Cancel: request{operationID, replicationID}, By: "main.go"})
	if err != nil {
		return err
	}
	// The same key as the request's, so that the cancel is behind it in the same partition.
	record := &kgo.Record{Topic: "vm-sync.requests", Key: []byte(replicationID), Value: value}
	return client.ProduceSync(ctx, record).FirstErr()
}

// limit is for the outcome: by default an hour more than the service's default deadline.
func limit() time.Duration {
	if seconds, err := strconv.ParseFloat(os.Getenv("WAIT_SECONDS"), 64); err == nil {
		return time.Duration(seconds * float64(time.Second))
	}
	return 7 * time.Hour
}

// main exits with 0 for completed, 1 for failed, 2 for a wrong call, 3 if nothing is known.
func main() {
	brokers := os.Getenv("KAFKA_BOOTSTRAP_SERVERS")
	if brokers == "" {
		brokers = "localhost:9092"
	}
	ctx, done := context.WithTimeout(context.Background(), limit())
	defer done()
	var outcome []byte
	var failed bool
	var err error
	switch len(os.Args) {
	case 2:
		outcome, failed, err = sync(ctx, brokers, os.Args[1])
	case 3:
		err = cancel(ctx, brokers, os.Args[1], os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: main REPLICATION_ID, or main REPLICATION_ID OPERATION_ID to cancel")
		os.Exit(2)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		// An invalid request has no outcome: it becomes a dead letter, which the service's operators see.
		err = fmt.Errorf("no outcome within %s; the request may still be in flight", limit())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if outcome != nil {
		fmt.Printf("%s\n", outcome)
	}
	if failed {
		os.Exit(1)
	}
}

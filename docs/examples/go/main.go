// Ask for a sync of one VM replication and wait for its outcome: go run . REPLICATION_ID
// Cancel a request that was sent before: go run . REPLICATION_ID OPERATION_ID
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"os"
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

// sync returns the outcome as it was told, and whether the request failed.
func sync(ctx context.Context, brokers, replicationID string) (outcome []byte, failed bool, err error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(brokers, ",")...),
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
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
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

func main() {
	brokers := os.Getenv("KAFKA_BOOTSTRAP_SERVERS")
	if brokers == "" {
		brokers = "localhost:9092"
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: main REPLICATION_ID, or main REPLICATION_ID OPERATION_ID to cancel")
		os.Exit(2)
	}
	if len(os.Args) > 2 {
		if err := cancel(context.Background(), brokers, os.Args[1], os.Args[2]); err != nil {
			log.Fatal(err)
		}
		return
	}
	outcome, failed, err := sync(context.Background(), brokers, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", outcome)
	if failed {
		os.Exit(1)
	}
}

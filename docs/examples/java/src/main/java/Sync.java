import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.stream.Stream;

import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Ask for a sync of one VM replication and wait for its outcome: mvn -q compile exec:java -Dexec.args=REPLICATION_ID
 * Cancel a request that was sent before: mvn -q compile exec:java -Dexec.args="REPLICATION_ID OPERATION_ID"
 */
public final class Sync {

    private static final String BROKERS = System.getenv().getOrDefault("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092");

    /** By default an hour more than the service's default deadline. */
    private static final long WAIT_SECONDS = Long.parseLong(System.getenv().getOrDefault("WAIT_SECONDS", "25200"));

    /** Exits with 0 for completed, 1 for failed, 2 for a wrong call, 3 if nothing is known. */
    public static void main(String[] args) throws Exception {
        if (args.length == 0 || args.length > 2) {
            System.err.println("usage: Sync REPLICATION_ID, or Sync REPLICATION_ID OPERATION_ID to cancel");
            System.exit(2);
        }
        try {
            if (args.length == 2) {
                cancel(args[0], args[1]);
                return;
            }
            ConsumerRecord<String, String> outcome = sync(args[0]);
            if (outcome != null) {
                System.out.println(outcome.value());
                System.exit(outcome.topic().equals("vm-sync.failed") ? 1 : 0);
            }
            // An invalid request has no outcome: it becomes a dead letter, which the service's operators see.
            System.err.printf("No outcome within %d s; the request may still be in flight.%n", WAIT_SECONDS);
        } catch (KafkaException | ExecutionException error) {
            System.err.printf("Kafka at %s can't be used: %s%n", BROKERS, error.getMessage());
        }
        System.exit(3);
    }

    /** Returns the outcome; null if there is none in time. */
    static ConsumerRecord<String, String> sync(String replicationId) throws Exception {
        String operationId = UUID.randomUUID().toString();
        // Both ids are of characters that JSON takes as they are.
        String request = """
                {"operationID": "%s", "replicationId": "%s"}""".formatted(operationId, replicationId);

        // Without read_committed, outcomes would be seen that never came to be.
        Map<String, Object> reading = Map.of(
                "bootstrap.servers", BROKERS, "isolation.level", "read_committed", "default.api.timeout.ms", 30_000);
        Map<String, Object> writing = Map.of("bootstrap.servers", BROKERS, "max.block.ms", 30_000);
        try (var consumer = new KafkaConsumer<>(reading, new StringDeserializer(), new StringDeserializer());
                var producer = new KafkaProducer<>(writing, new StringSerializer(), new StringSerializer())) {
            List<TopicPartition> outcomes = Stream.of("vm-sync.completed", "vm-sync.failed")
                    .flatMap(topic -> consumer.partitionsFor(topic).stream())
                    .map(partition -> new TopicPartition(partition.topic(), partition.partition()))
                    .toList();
            consumer.assign(outcomes);
            consumer.seekToEnd(outcomes);
            // seekToEnd is lazy; look before the request is sent, so that its outcome can't be missed.
            outcomes.forEach(consumer::position);

            // The key keeps the requests for one replication in order.
            producer.send(new ProducerRecord<>("vm-sync.requests", replicationId, request)).get();
            for (long end = System.nanoTime() + WAIT_SECONDS * 1_000_000_000L; System.nanoTime() < end;) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    if (operationId.equals(correlationId(record))) {
                        return record;
                    }
                }
            }
            return null;
        }
    }

    /** Cancel a request. It has its outcome if it still waits; one that VCDA has accepted goes on. */
    static void cancel(String replicationId, String operationId) throws Exception {
        String message = """
                {"cancel": {"operationID": "%s", "replicationId": "%s"}, "by": "Sync.java"}"""
                .formatted(operationId, replicationId);
        Map<String, Object> writing = Map.of("bootstrap.servers", BROKERS, "max.block.ms", 30_000);
        try (var producer = new KafkaProducer<>(writing, new StringSerializer(), new StringSerializer())) {
            // The same key as the request's, so that the cancel is behind it in the same partition.
            producer.send(new ProducerRecord<>("vm-sync.requests", replicationId, message)).get();
        }
    }

    private static String correlationId(ConsumerRecord<String, String> record) {
        var header = record.headers().lastHeader("correlation_id");
        return header == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }
}

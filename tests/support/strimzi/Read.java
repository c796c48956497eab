import com.fasterxml.jackson.annotation.JsonInclude;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.introspect.Annotated;
import com.fasterxml.jackson.databind.introspect.JacksonAnnotationIntrospector;
import io.strimzi.api.kafka.model.topic.KafkaTopic;
import io.strimzi.api.kafka.model.user.KafkaUser;
import java.util.Map;

/**
 * Reads a JSON list of KafkaTopics and KafkaUsers with the classes that Strimzi's operators read them with, and prints a line for
 * each: "ok", or what the classes do not know. A field that they do not know is kept aside by them, an unknown word of an
 * enumeration is dropped; so the first is made an error here, and what is read is written again and compared.
 */
class Read {
    private static final Map<String, Class<?>> KINDS = Map.of("KafkaTopic", KafkaTopic.class, "KafkaUser", KafkaUser.class);

    public static void main(String[] arguments) throws Exception {
        ObjectMapper mapper = new ObjectMapper();
        mapper.setSerializationInclusion(JsonInclude.Include.NON_NULL);
        mapper.setAnnotationIntrospector(new JacksonAnnotationIntrospector() {
            @Override
            public Boolean hasAnySetter(Annotated annotated) {
                return false;
            }
        });
        for (JsonNode thing : mapper.readTree(System.in)) {
            System.out.println(verdict(mapper, thing));
        }
    }

    private static String verdict(ObjectMapper mapper, JsonNode thing) {
        try {
            Object read = mapper.treeToValue(thing, KINDS.get(thing.get("kind").asText()));
            JsonNode written = mapper.readTree(mapper.writeValueAsString(read));
            return written.equals(thing) ? "ok" : "is read as " + written;
        } catch (JsonProcessingException error) {
            return error.getOriginalMessage();
        }
    }
}

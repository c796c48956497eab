"""What the operators' own kinds look like, as far as we use them: the fields in use, and no other.

Kubernetes' schemas don't have these kinds. Written by hand from the operators' documentation, and strict, so that a
misspelt field, which Kubernetes would drop in silence, turns a test red. A new field is added here when it is used.
"""

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|s|m|h|d)$"}


def texts(**others: Schema) -> Schema:
    """A map of strings, some of them perhaps more exactly known."""
    return {"type": "object", "properties": others, "additionalProperties": TEXT}


def exactly(*optional: str, **fields: Schema) -> Schema:
    """An object of these fields, all of them needed but those named, and of no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": [name for name in fields if name not in optional],
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1}


def of(*values: str) -> Schema:
    """One of some words."""
    return {"enum": list(values)}


def kind(name: str, version: str, spec: Schema) -> Schema:
    """A whole object."""
    metadata = exactly("labels", "annotations", name=TEXT, namespace=TEXT, labels=texts(), annotations=texts())
    return exactly(apiVersion=of(version), kind=of(name), metadata=metadata, spec=spec)


OPERATOR = "monitoring.coreos.com/v1"
KEDA = "keda.sh/v1alpha1"
STRIMZI = "kafka.strimzi.io/v1"
VERSIONS = (OPERATOR, KEDA, STRIMZI)
VERSION_OF = {
    "PodMonitor": OPERATOR,
    "PrometheusRule": OPERATOR,
    "ScaledObject": KEDA,
    "KafkaTopic": STRIMZI,
    "KafkaUser": STRIMZI,
}

_RECORDING = exactly(record=TEXT, expr=TEXT)
_ALERTING = exactly(
    "keep_firing_for",
    alert=TEXT,
    expr=TEXT,
    **{"for": DURATION},
    keep_firing_for=DURATION,
    labels=texts(),
    annotations=texts(),
)

_SCALING = exactly(
    "selectPolicy",
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=some(
        exactly(
            type=of("Pods", "Percent"), value=NUMBER, periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800}
        )
    ),
    selectPolicy=of("Max", "Min", "Disabled"),
)

_OPERATIONS = of(
    "Read",
    "Write",
    "Create",
    "Delete",
    "Alter",
    "Describe",
    "ClusterAction",
    "AlterConfigs",
    "DescribeConfigs",
    "IdempotentWrite",
    "All",
)

SCHEMAS: dict[str, Schema] = {
    "PodMonitor": kind(
        "PodMonitor",
        OPERATOR,
        exactly(
            selector=exactly(matchLabels=texts()),
            jobLabel=TEXT,
            podMetricsEndpoints=some(
                exactly(
                    port=TEXT,
                    path=TEXT,
                    interval=DURATION,
                    scrapeTimeout=DURATION,
                    relabelings=some(exactly(sourceLabels=some(TEXT), targetLabel=TEXT)),
                )
            ),
        ),
    ),
    "PrometheusRule": kind(
        "PrometheusRule",
        OPERATOR,
        exactly(groups=some(exactly(name=TEXT, rules=some({"oneOf": [_RECORDING, _ALERTING]})))),
    ),
    "ScaledObject": kind(
        "ScaledObject",
        KEDA,
        exactly(
            scaleTargetRef=exactly(name=TEXT),
            pollingInterval=NUMBER,
            minReplicaCount=NUMBER,
            maxReplicaCount=NUMBER,
            advanced=exactly(
                restoreToOriginalReplicaCount=FLAG,
                horizontalPodAutoscalerConfig=exactly(behavior=exactly(scaleUp=_SCALING, scaleDown=_SCALING)),
            ),
            triggers=some(
                exactly(
                    type=of("prometheus"),
                    name=TEXT,
                    metricType=of("AverageValue", "Value"),
                    # Its values are strings, whatever they mean.
                    metadata=exactly(serverAddress=TEXT, query=TEXT, threshold=TEXT),
                )
            ),
        ),
    ),
    "KafkaTopic": kind(
        "KafkaTopic",
        STRIMZI,
        exactly(partitions=NUMBER, replicas=NUMBER, config={"type": "object", "minProperties": 1}),
    ),
    "KafkaUser": kind(
        "KafkaUser",
        STRIMZI,
        exactly(
            authentication=exactly(
                "password",
                type=of("scram-sha-512", "tls", "tls-external"),
                password=exactly(valueFrom=exactly(secretKeyRef=exactly(name=TEXT, key=TEXT))),
            ),
            authorization=exactly(
                type=of("simple"),
                acls=some(
                    exactly(
                        resource=exactly(
                            "patternType",
                            type=of("topic", "group", "cluster", "transactionalId"),
                            name=TEXT,
                            patternType=of("literal", "prefix"),
                        ),
                        operations=some(_OPERATIONS),
                    )
                ),
            ),
        ),
    ),
}

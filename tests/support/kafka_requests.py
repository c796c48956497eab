"""Requests of operators that aiokafka's admin client lacks: elections, topic settings one by one, and quotas."""

from collections.abc import Mapping
from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int8, Int16, Int32, Schema, String
from typing_extensions import override

TIMEOUT_MS: Final = 10_000
"""For what a broker has to do before it answers."""

_TOPIC: Final = 2
_SET, _UNSET = 0, 1
_TEXT: Final = String("utf-8")


class _ElectLeadersResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 43
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("topic", _TEXT),
                ("partitions", Array(("partition", Int32), ("error_code", Int16), ("error_message", _TEXT))),
            ),
        ),
    )


class _ElectLeadersRequest(RequestStruct):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 43
    API_VERSION = 0
    RESPONSE_TYPE = _ElectLeadersResponse
    SCHEMA = Schema(
        ("topic_partitions", Array(("topic", _TEXT), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class ElectLeaders(Request[_ElectLeadersRequest]):  # type: ignore[misc] # aiokafka is untyped
    """Let the preferred replica of each of these partitions lead it: the first one of its replicas."""

    API_KEY = 43

    def __init__(self, partitions: Mapping[str, list[int]]) -> None:
        self._partitions = partitions

    @override
    def build(self, request_struct_class: type[_ElectLeadersRequest]) -> _ElectLeadersRequest:
        return request_struct_class(list(self._partitions.items()), TIMEOUT_MS)


class _IncrementalAlterConfigsResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(("error_code", Int16), ("error_message", _TEXT), ("resource_type", Int8), ("resource_name", _TEXT)),
        ),
    )


class _IncrementalAlterConfigsRequest(RequestStruct):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", _TEXT),
                ("configs", Array(("name", _TEXT), ("operation", Int8), ("value", _TEXT))),
            ),
        ),
        ("validate_only", Boolean),
    )


class AlterTopic(Request[_IncrementalAlterConfigsRequest]):  # type: ignore[misc] # aiokafka is untyped
    """Change some settings of a topic; None: back to the broker's."""

    API_KEY = 44

    def __init__(self, topic: str, settings: Mapping[str, str | None]) -> None:
        self._topic = topic
        self._settings = settings

    @override
    def build(self, request_struct_class: type[_IncrementalAlterConfigsRequest]) -> _IncrementalAlterConfigsRequest:
        configs = [(name, _UNSET if value is None else _SET, value) for name, value in self._settings.items()]
        return request_struct_class([(_TOPIC, self._topic, configs)], False)


class _AlterClientQuotasResponse(Response):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "entries",
            Array(
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("entity", Array(("entity_type", _TEXT), ("entity_name", _TEXT))),
            ),
        ),
    )


class _AlterClientQuotasRequest(RequestStruct):  # type: ignore[misc] # aiokafka is untyped
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = _AlterClientQuotasResponse
    SCHEMA = Schema(
        (
            "entries",
            Array(
                ("entity", Array(("entity_type", _TEXT), ("entity_name", _TEXT))),
                ("ops", Array(("key", _TEXT), ("value", Float64), ("remove", Boolean))),
            ),
        ),
        ("validate_only", Boolean),
    )


class AlterQuotas(Request[_AlterClientQuotasRequest]):  # type: ignore[misc] # aiokafka is untyped
    """Limit what a user may do, such as `producer_byte_rate`; None: no limit any more."""

    API_KEY = 49

    def __init__(self, user: str, quotas: Mapping[str, float | None]) -> None:
        self._user = user
        self._quotas = quotas

    @override
    def build(self, request_struct_class: type[_AlterClientQuotasRequest]) -> _AlterClientQuotasRequest:
        changes = [(key, value or 0.0, value is None) for key, value in self._quotas.items()]
        return request_struct_class([([("user", self._user)], changes)], False)


def codes(response: Any) -> list[int]:
    """Return the error codes in a response to any of these, to AlterPartitionReassignments, or about rights."""
    if isinstance(response, _ElectLeadersResponse):
        return [code for _, partitions in response.results for _, code, _ in partitions]
    if isinstance(response, _IncrementalAlterConfigsResponse):
        return [code for code, *_ in response.responses]
    for name in ("creation_responses", "filter_responses"):
        if hasattr(response, name):
            return [code for code, *_ in getattr(response, name)]
    if isinstance(response, _AlterClientQuotasResponse):
        return [code for code, *_ in response.entries]
    return [response.error_code, *(code for _, partitions, _ in response.responses for _, code, *_ in partitions)]

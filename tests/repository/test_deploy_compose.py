"""All of it on one machine: the compose file is valid, and what it mounts, sets and asks for is there."""

import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import settings
from service.sandbox.kafka_jars import KAFKA_VERSION
from service.settings import types as kinds

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_file_is_what_the_compose_specification_allows() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert run.returncode == 0, run.stdout + run.stderr


def test_it_has_kafka_a_simulated_vcda_the_service_prometheus_and_grafana() -> None:
    assert set(SERVICES) == {"kafka", "simulator", "vm-sync", "prometheus", "grafana"}


def test_the_service_accepts_its_settings() -> None:
    loaded = settings.load(SERVICES["vm-sync"]["environment"])

    assert loaded.kafka.servers == ["kafka:9092"]
    assert loaded.vcda.url == f"http://127.0.0.1:{SERVICES['simulator']['command'][-1]}"


def test_the_simulator_is_on_the_services_own_loopback() -> None:
    assert SERVICES["simulator"]["network_mode"] == "service:vm-sync"


def test_the_simulators_health_is_its_own_and_not_that_of_the_service_with_which_it_shares_its_network() -> None:
    port = SERVICES["simulator"]["command"][-1]
    check = SERVICES["simulator"]["healthcheck"]["test"]

    assert f"('127.0.0.1', {port})" in check[-1]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: refused
        code = check[-1].replace(port, str(nobody.getsockname()[1]))
        unhealthy = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=240)
        nobody.listen()
        healthy = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=240)
    assert (healthy.returncode, unhealthy.returncode) == (0, 1)


def test_a_clean_stop_ends_before_it_is_killed() -> None:
    grace = timedelta(seconds=int(SERVICES["vm-sync"]["stop_grace_period"].removesuffix("s")))

    assert grace >= settings.Ops().drain_limit + timedelta(seconds=10), kinds.iso8601(grace)


def test_every_file_that_is_mounted_is_there() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]

    assert sources
    assert [source for source in sources if not (DEPLOY / source).is_file()] == []


def test_the_kafka_is_the_one_that_the_tests_run_against() -> None:
    broker = (DEPLOY / "kubernetes" / "overlays" / "local" / "kafka.yaml").read_text()

    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert f"image: apache/kafka:{KAFKA_VERSION}\n" in broker


def test_the_kafkas_that_forget_their_topics_make_none_by_being_asked_for_them() -> None:
    broker = (DEPLOY / "kubernetes" / "overlays" / "local" / "kafka.yaml").read_text()

    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert 'name: KAFKA_AUTO_CREATE_TOPICS_ENABLE, value: "false"' in broker


@pytest.mark.parametrize("topic", ["OFFSETS_TOPIC", "TRANSACTION_STATE_LOG"])
def test_the_kafkas_to_look_at_make_their_own_topics_with_one_partition_and_one_replica(topic: str) -> None:
    broker = (DEPLOY / "kubernetes" / "overlays" / "local" / "kafka.yaml").read_text()

    for number in ("REPLICATION_FACTOR", "NUM_PARTITIONS"):
        assert SERVICES["kafka"]["environment"][f"KAFKA_{topic}_{number}"] == "1"
        assert f'name: KAFKA_{topic}_{number}, value: "1"' in broker


def test_nothing_listens_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_asks_the_service_where_it_listens_and_grafana_asks_prometheus() -> None:
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"]
    (source,) = yaml.safe_load((DEPLOY / "monitoring" / "grafana-datasource.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DEPLOY / "monitoring" / "grafana-dashboards.yaml").read_text())["providers"]

    assert [job["job_name"] for job in scraped] == ["vm-sync"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"vm-sync:{settings.Ops().port}"]
    assert source["url"] == "http://prometheus:9090"
    assert any(f":{provider['options']['path']}/" in volume for volume in SERVICES["grafana"]["volumes"])


def test_the_comment_at_the_top_asks_for_a_request_that_the_simulator_understands() -> None:
    (replication,) = re.findall(r"vm-sync request (\S+)", (DEPLOY / "compose.yaml").read_text())

    assert re.fullmatch(r"C4-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", replication)

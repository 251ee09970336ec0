"""The examples for a team's machines are what they say: parsed here, and their pools taken by a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def test_the_image_has_the_torch_that_is_tested() -> None:
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert pinned is not None
    assert f"ARG TORCH={pinned[1]}\n" in dockerfile
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_manifests_are_whole_and_stay_in_their_namespace(file: Path) -> None:
    for each in yaml.safe_load_all(file.read_text()):
        assert {"apiVersion", "kind", "metadata"} <= each.keys()
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "tokenflow", each["metadata"]["name"]


def test_no_example_holds_a_secret() -> None:
    for file in DEPLOY.glob("*.example"):
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if re.search(r"KEY|PASSWORD|AUTH|TOKEN\b", name) and not name.startswith("#"):
                assert value == "" or "PASSWORD@" in value, line
    secrets = [each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text()) if each["kind"] == "Secret"]
    assert secrets
    for secret in secrets:
        for value in secret.get("stringData", {}).values():
            assert not re.search(r"AKIA|[A-Za-z0-9+/]{32}", value), secret["metadata"]["name"]


def test_compose_gives_each_worker_one_gpu_and_its_secrets_by_file() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    workers = {name: service for name, service in services.items() if name.startswith("gpu-")}
    assert workers
    for service in workers.values():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert len(device["device_ids"]) == 1
        assert service["env_file"] == "worker.env"


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_every_placeholder_of_a_job_template_has_its_variable(kind: str) -> None:
    template: dict[str, Any] = json.loads((DEPLOY / f"{kind}-pool.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used <= template["variables"]["properties"].keys()
    assert "gpu" in json.dumps(template["job_configuration"]).lower()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_server_takes_the_pool(kind: str, api: str) -> None:
    from prefect.client.orchestration import get_client

    from flows.deployments import make_pool

    with get_client(sync_client=True) as client:
        make_pool(client, f"gpus-{kind}", kind)
        pool = client.read_work_pool(f"gpus-{kind}")
    assert pool.type == kind
    assert pool.base_job_template == json.loads((DEPLOY / f"{kind}-pool.json").read_text())

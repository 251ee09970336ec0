"""The deployments of `prefect.yaml`, registered with a server; and the videos that the form of edit-cached offers."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.engine import SECONDS_WITHOUT_SIGN
from flows.forms import titled
from flows.places import store_at
from store.errors import InputError
from store.store import Store

MOST_OFFERED = 200  # videos in the drop-down
KEY = r"^(blake3:)?[0-9a-f]{4,64}$"
STORE = "store"  # in the schema of the drop-down: where what it offers lies


def refresh_cached_videos(store: str | None) -> None:
    """Have the form of edit-cached offer what the store has prepared, where it is the store that the form is about.

    A server that cannot do so does without.
    """
    with suppress(Exception), get_client(sync_client=True) as client:
        opened = store_at(store)
        deployment = client.read_deployment_by_name("edit-cached/edit-cached")
        if _video_field(deployment.parameter_openapi_schema or {}).get(STORE) in (None, opened.place):
            offer_cached_videos(client, opened)


def offer_cached_videos(client: Any, store: Store) -> None:
    """Put what the store has prepared into the drop-down."""
    from flows.videos import preparations  # needs torch, for which who watches or cancels a run does not wait

    try:
        deployment = client.read_deployment_by_name("edit-cached/edit-cached")
    except ObjectNotFound:
        return
    schema = deepcopy(deployment.parameter_openapi_schema)
    with_labels(schema, [each.label for each in preparations(store)], store.place)
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))


def with_labels(schema: dict[str, Any], labels: list[str], place: str) -> None:
    """Change the schema of edit-cached's parameters so that `video` is one of `labels`, or a key; without any, a key.

    place   of the store that has prepared them
    """
    field = _video_field(schema)
    for name in ("type", "minLength", "anyOf", "pattern"):
        field.pop(name, None)
    key = {"title": "Key", "type": "string", "pattern": KEY}
    offered = {"title": field["title"], "type": "string", "enum": labels[:MOST_OFFERED]}
    field |= {"anyOf": [offered, key]} if labels else key | {"title": field["title"]}
    have = "one of those that are prepared" if labels else "none is prepared yet, run prepare-video first"
    field |= {STORE: place, "description": f"{have} in {place}, or the first digits of a video's key"}


def _video_field(schema: dict[str, Any]) -> dict[str, Any]:
    field: dict[str, Any] = schema["definitions"]["CachedEdit"]["properties"]["video"]
    return field


# registering

POOL_TYPES = ("process", "docker", "kubernetes")
TOKENFLOW_FLOWS = ["prepare-video", "edit-video", "edit-cached", "preview-video", "sweep", "collect-garbage"]


def shipped(name: str) -> Path:
    """A file of the checkout, or its copy in the installed package."""
    here = Path(__file__)
    return next(path for path in (here.parents[1] / name, here.parent / name) if path.is_file())


def described() -> list[dict[str, Any]]:
    """The deployments as prefect.yaml has them."""
    import yaml

    deployments: list[dict[str, Any]] = yaml.safe_load(shipped("prefect.yaml").read_text("utf-8"))["deployments"]
    return deployments


def deploy(pool: str, pool_type: str | None = None, store: str | None = None) -> list[str]:
    """Register all deployments in a work pool, which is made where there is none; returns their names.

    pool_type  of the pool: that of the one there is, or process, without it
    store      whose prepared videos the form of edit-cached offers; the worker's own without it
    raises     InputError where the pool is of another type, or there is no such type
    """
    with get_client(sync_client=True) as client:
        make_pool(client, pool, pool_type)
        names = [registered(each, pool) for each in described()]
        offer_cached_videos(client, store_at(store))
    notice_dead_runs()
    return names


def make_pool(client: Any, name: str, pool_type: str | None) -> None:
    """The work pool `name`; one that is there stays as it is."""
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        kind = pool_type or "process"
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template(kind)))
        return
    if pool_type not in (None, found.type):
        raise InputError(f"the pool {name} is of type {found.type}, not {pool_type}; name another with --pool")


def template(pool_type: str) -> dict[str, Any]:
    """The base job template for a pool: for docker and kubernetes that of deploy/, for process Prefect's own.

    raises   InputError for any other type
    """
    if pool_type == "process":
        return {}
    if pool_type not in POOL_TYPES:
        raise InputError(f"--type {pool_type!r}: have {', '.join(POOL_TYPES)}; make other pools with prefect")
    found: dict[str, Any] = json.loads(shipped(f"deploy/{pool_type}-pool.json").read_text("utf-8"))
    return found


def registered(given: dict[str, Any], pool: str) -> str:
    """Register one deployment of prefect.yaml; returns its whole name."""
    flow: Any = load_flow_from_entrypoint(given["entrypoint"])
    schedules = [
        Cron(each["cron"], timezone=each["timezone"], active=each["active"]) for each in given.get("schedules", ())
    ]
    limit = given.get("concurrency_limit")
    deployment = flow.to_deployment(
        given["name"], description=given["description"], tags=given["tags"], work_pool_name=pool,
        job_variables=given["work_pool"].get("job_variables"),
        schedules=schedules or None, entrypoint_type=EntrypointType.MODULE_PATH,
        enforce_parameter_schema=given["enforce_parameter_schema"],
        concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
    )  # fmt: skip
    deployment.entrypoint = given["entrypoint"]
    made = deployment.apply()
    schema = flow.parameters.model_dump()
    titled(schema)
    with get_client(sync_client=True) as client:
        client.update_deployment(made, DeploymentUpdate(parameter_openapi_schema=schema))
    return f"{flow.name}/{given['name']}"


def notice_dead_runs() -> None:
    """Have the server mark a run Crashed that shows no sign of life any more, since its machine or process died.

    A run that ends otherwise is left alone; the automation is made once, and kept up to date.
    """
    name = "tokenflow: mark dead runs as crashed"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    automation = Automation(
        name=name,
        description="A run whose process was killed sends no heartbeat. Retry it: it goes on from what is kept.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": TOKENFLOW_FLOWS}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SECONDS_WITHOUT_SIGN),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life; retry it to go on")],
    )
    try:
        there: Any = Automation.read(name=name)
    except ValueError:
        automation.create()
        return
    automation.id, automation.enabled = there.id, there.enabled  # whoever switched it off wants it off
    automation.update()

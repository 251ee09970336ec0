"""What a flow run leaves for people: one page in Markdown, a report beside it where there is a place for one, tags.

A page that cannot be made or sent fails no run.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.ending import end_page
from flows.report import write_report
from flows.run import Result
from flows.showing import sentence_of
from flows.summary import artifact_key, summary
from flows.tasks import Session

REPORTS, REPORTS_URL = "TOKENFLOW_REPORTS", "TOKENFLOW_REPORTS_URL"


def reports_place() -> tuple[Path, str] | None:
    """The folder for reports and clips, and the address at which it is served, where both are set."""
    folder, url = os.environ.get(REPORTS), os.environ.get(REPORTS_URL)
    return (Path(folder), url.rstrip("/")) if folder and url else None


def place_for_clip(run: str) -> Path | None:
    """The clip of a run that was given no output: where reports lie, so that its page can link it."""
    place = reports_place()
    return place[0] / f"{run}.mp4" if place and place[0].is_dir() else None


def publish(session: Session, result: Result | None = None) -> None:
    """The page of a run that is complete."""
    clips = [Path(output["file"]) for output in result.outputs] if result else []
    context = FlowRunContext.get()
    seconds = (datetime.now(UTC) - context.start_time).total_seconds() if context else None

    def page() -> str:
        return summary(session, links(session, result), clips, seconds)

    _sent(page, artifact_key(session.plan.config.video), "What came out")


def publish_end(error: BaseException, session: Session | None) -> None:
    """The page of a run that ended before its time."""
    video = session.plan.config.video if session else None
    _sent(lambda: end_page(error, sentence_of(error), session), artifact_key(video), "Why it ended, and what to do")


def links(session: Session, result: Result | None) -> list[tuple[str, str]]:
    """(title, address) of a run's report, which is written here, and of its clips."""
    place = reports_place()
    if place is None or result is None or result.run is None:
        return []
    folder, url = place
    found = [
        (f"clip: {output['prompt']}", f"{url}/{quote(Path(output['file']).name)}")
        for output in result.outputs
        if Path(output["file"]).parent == folder
    ]
    try:
        if result.outputs:
            write_report(session.store, result.run, folder / f"{result.run}.html")
            found.insert(0, ("report", f"{url}/{result.run}.html"))
    except Exception as error:
        get_run_logger().warning("the run's report could not be written: %s", error)
    return found


def add_tags(*tags: str) -> None:
    """Tag the current flow run, and say in which process it runs: that may die."""
    process = f"{socket.gethostname()}:{os.getpid()}"
    with suppress(Exception), get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted({*flow_run.tags, *tags}), infrastructure_pid=process)


def _sent(page: Callable[[], str], key: str, description: str) -> None:
    try:
        create_markdown_artifact(page(), key=key, description=description)
    except Exception as error:
        get_run_logger().warning("the run's page could not be shown: %s", error)

"""A person at the UI: picks a cached video, types a new prompt, watches the run, looks at the picture.

TOKENFLOW_SCREENSHOTS=docs/img keeps what is seen; the pictures in docs/prefect.md are made by this very test.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.desks import ROOT, AtDesk
from tests.flows.server import get

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(900)]

PROMPT = "a purple ball on grass"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 300_000  # milliseconds: two busy cores


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of a real browser."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed here")
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def keep(page: Any, name: str, whole: bool = False) -> None:
    """Keep what is seen, where somebody asked for it."""
    if folder := os.environ.get("TOKENFLOW_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # what moves has come to rest
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=whole)


COLOURS = """picture => {
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth, canvas.height = picture.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
    for (let k = 0; k < bytes.length; k += 4) seen.add(bytes[k] << 16 | bytes[k + 1] << 8 | bytes[k + 2]);
    return seen.size;
}"""  # how many colours a picture has: none that failed to load, one or two of an empty one


@pytest.fixture
def prepared(desk: AtDesk) -> str:
    """The address of the UI, where a video is prepared: by the deployment, on the worker."""
    deployment = get(desk.api, "/deployments/name/prepare-video/prepare-video")
    config = {"video": str(ROOT / "examples" / "ball.mp4"), "source_prompt": "a red ball on grass", "steps": 20}
    code, run = desk.post(f"/deployments/{deployment['id']}/create_flow_run", parameters={"config": config})
    assert code == 201, run
    done = desk.tf("watch", run["id"])
    assert done.code == 0, done.err
    return f"{desk.said['ui']}/v2"


def test_a_cached_video_is_picked_edited_watched_and_looked_at(page: Any, desk: AtDesk, prepared: str) -> None:
    page.goto(f"{prepared}/deployments")
    page.get_by_role("link", name="edit-cached", exact=True).first.wait_for()
    keep(page, "deployments")
    page.get_by_role("link", name="edit-cached", exact=True).first.click()
    page.get_by_role("link", name="Run", exact=True).or_(
        page.get_by_role("button", name="Run", exact=True)
    ).first.click()
    page.get_by_role("menuitem", name="Custom run").click()

    page.get_by_label("Select Video").click()
    page.get_by_role("option", name="ball · 24 frames · 64×64 · pocket").click()
    page.get_by_role("button", name="Add item").first.click()
    page.locator("main textarea").first.fill(PROMPT)
    keep(page, "form", whole=True)
    page.get_by_role("button", name="Submit").click()

    page.get_by_role("link", name=f"edit · ball · '{PROMPT}'").first.click()
    page.get_by_text("Completed", exact=True).first.wait_for()
    page.locator("canvas").first.wait_for()
    keep(page, "run")
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_text("Cached", exact=True).nth(3).wait_for()
    keep(page, "cached")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name="tokenflow-edit-ball").first.click()
    page.locator("main a[href*='/artifacts/artifact/']").first.click()  # the newest

    picture = page.get_by_alt_text("source and edit").first
    picture.wait_for()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 100
    assert picture.evaluate(COLOURS) > 500
    keep(page, "page")

"""The page about a run: a real browser opens it from disk, without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.report import clips_of, contents, find_run, write_report
from flows.report_measures import confidence
from flows.report_pictures import MOST_FRAMES, Shown, data_uri
from flows.run import run_edit, run_preview
from pocket.clips import write_video
from pocket.world import sample_clip
from stages.measures.frames import Motion, warp_errors
from store.errors import InputError
from store.store import Store
from tests.flows.runs import make_plan
from tests.test_cli import Tf, made, tf  # noqa: F401 (fixtures)

NASTY = '</script><script>window.hacked=1</script> "it\'s" <b>&amp; {{ 7*7 }} \u2028 é'
PROMPTS = ("a red ball", NASTY)
FRAMES, SIZE, RATE = 7, 32, 10


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a rendered clip, its truth, and a store in which it was edited twice."""
    import torch

    folder = tmp_path_factory.mktemp("reported")
    scenes = sample_clip(FRAMES, torch.Generator().manual_seed(3), shape="ball", surface="dotted", ground="grass")
    write_video(folder / "clip.mp4", scenes, size=SIZE, rate=RATE)
    run_edit(make_plan(folder / "clip.mp4", tiny_folder, folder / "store", prompts=PROMPTS), folder / "o.mp4", "direct")
    return folder


@pytest.fixture(scope="module")
def page_file(made_run: Path) -> Path:
    write_report(Store(made_run / "store"), "latest", made_run / "page.html")
    return made_run / "page.html"


@pytest.fixture
def own(made_run: Path, tmp_path: Path) -> Store:
    """A store of its own with that run in it."""
    return Store(shutil.copytree(made_run / "store", tmp_path / "store"))


def removed(store: Store, *stages: str) -> None:
    """Remove the objects of stages, as a collection does: their records stay."""
    for stage in stages:
        for record in store.records(stage):
            if artifact := store.find(record.recipe):
                shutil.rmtree(artifact.path)


def test_warp_errors_follow_the_exact_motion(made_run: Path) -> None:
    from pocket.truth import read_truth
    from pocket.world import flow

    store = Store(made_run / "store")
    run = find_run(store, "latest")
    page = contents(store, run, "auto")
    assert page["motion"] == "known exactly, since the clip was rendered"
    scenes = read_truth(made_run / "clip.mp4")
    assert scenes is not None
    truth = flow(scenes, SIZE)
    motion = Motion(truth.backward, ~truth.occluded_backward)
    frames, edits = clips_of(store, run)
    for clip, line in zip([frames, *(edit.clip for edit in edits)], page["errors"].lines, strict=True):
        assert float(line.mean) == pytest.approx(1000 * float(warp_errors(clip["rgb"][:], motion).mean()), abs=0.006)
    assert [line.name for line in page["errors"].lines] == ["source", *PROMPTS]


@pytest.mark.parametrize("text", ["{", "[]", '{"id": 1}', '{"id": "20990101-000000-abcdef", "command": "run"}'])
def test_a_damaged_run_is_named_and_the_newest_sound_one_is_the_latest(
    own: Store, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound = find_run(own, "latest")["id"]
    damaged = own.layout.runs / "20990101-000000-abcdef.json"
    damaged.write_text(text)
    assert find_run(own, "latest")["id"] == sound
    assert str(damaged) in caplog.text
    with pytest.raises(InputError, match=f"no run '{damaged.stem}'"):
        find_run(own, damaged.stem)


def test_motion_is_estimated_where_the_truth_is_another_clips(made_run: Path, own: Store, tmp_path: Path) -> None:
    run = find_run(own, "latest")
    other = shutil.copytree(made_run, tmp_path / "other", ignore=shutil.ignore_patterns("store"))
    run["config"]["video"] = str(other / "clip.mp4")
    assert "known exactly" in contents(own, run, "dis")["motion"]
    with (other / "clip.mp4").open("ab") as file:
        file.write(b"\0")
    assert "estimated" in contents(own, run, "dis")["motion"]


def test_confidence_is_one_where_every_frame_is_a_keyframe(made_run: Path) -> None:
    store = Store(made_run / "store")
    (record,) = store.records("match_tokens")
    field = store.find(record.recipe)
    assert field is not None
    sure = confidence(field)
    assert sure.by_frame.shape == (len(sure.layers), FRAMES) and sure.by_step.shape == (len(sure.layers), 2)
    always = set.intersection(*({*row} for row in field["keyframes"][:].tolist()))
    never = set(range(FRAMES)) - {*field["keyframes"][:].ravel().tolist()}
    assert np.allclose(sure.by_frame[:, sorted(always)], 1)
    assert (sure.by_frame[:, sorted(never)] < 1).all() and never


def test_frames_are_shown_at_their_times_and_thinned_where_there_are_many(made_run: Path) -> None:
    store = Store(made_run / "store")
    frames, _ = clips_of(store, find_run(store, "latest"))
    shown = Shown.of(frames, clips=3)
    assert (shown.frames, shown.note) == (list(range(FRAMES)), None)
    assert shown.milliseconds == pytest.approx([1000 / RATE] * FRAMES)
    long = {
        "rgb": np.zeros((1000, 16, 2000, 3), np.uint8),
        "pts": np.arange(1000) / 25,
        "duration": np.full(1000, 0.04),
    }
    thin = Shown.of(long, clips=2)  # type: ignore[arg-type]
    assert len(thin.frames) == MOST_FRAMES and sum(thin.milliseconds) == pytest.approx(40_000)
    assert thin.note is not None and f"{MOST_FRAMES} of 1000 frames" in thin.note and "640×5 instead" in thin.note


def test_tiny_pictures_lose_nothing() -> None:
    import base64
    import io

    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    uri = data_uri(rgb, 30, 20)
    back = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    assert (np.asarray(back) == rgb).all()


def test_a_clip_stands_for_its_run(made_run: Path) -> None:
    store = Store(made_run / "store")
    latest = find_run(store, "latest")["id"]
    for name in (latest, made_run / "o-1.mp4", made_run / "o-2.mp4.json"):
        assert find_run(store, str(name))["id"] == latest


def test_removed_clips_are_named_and_come_back(own: Store, made_run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    removed(own, "propagate_tokens")
    with pytest.raises(
        InputError, match=r"propagate_tokens/\w{12} and propagate_tokens/\w{12} .*: tf run .*tf reproduce"
    ):
        write_report(own, "latest", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    run = find_run(own, "latest")["id"]
    run_edit(make_plan(made_run / "clip.mp4", tiny_folder, own, prompts=PROMPTS), tmp_path / "o.mp4", "direct")
    write_report(own, run, tmp_path / "page.html")


def test_what_the_clips_do_not_need_may_be_gone(own: Store, tmp_path: Path) -> None:
    removed(own, "invert_frames", "extract_tokens", "match_tokens", "edit_keyframes")
    write_report(own, "latest", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "The field of this run is not in the store any more" in page
    assert page.count("removed from the store since") == 5


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("nothing", "a.html", r"no run 'nothing' .* the newest are \d{8}-\d{6}-\w{6}; or say latest"),
        ("latest", "a.txt", r"end its name in \.html"),
        ("latest", "gone/a.html", "there is no folder"),
        ("latest", ".html", "end its name"),
        ("gone.json", "a.html", "cannot read gone.json"),
    ],
)
def test_bad_input(made_run: Path, tmp_path: Path, name: str, output: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_report(Store(made_run / "store"), name, tmp_path / output)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_is_no_run_with_clips(made_run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    with pytest.raises(InputError, match=r"there is no run in .* yet; tf run VIDEO --prompt TEXT"):
        find_run(store, "latest")
    run = run_preview(make_plan(made_run / "clip.mp4", tiny_folder, store), tmp_path / "p.png", "direct").run
    for name in ("latest", str(run)):
        with pytest.raises(InputError, match="there is no"):
            find_run(store, name)


def test_the_command(tf: Tf) -> None:  # noqa: F811
    done = tf("report", "latest", "-o", "page.html", "--flow", "dis", "--json")
    assert done.code == 0 and done.json["file"] == "page.html" and "estimated" in done.json["motion"]
    assert Path("page.html").stat().st_size == done.json["bytes"]
    for arguments in (["unknown"], ["latest", "-o", "."], ["latest", "--flow", "no"], ["latest", "-o", "page.png"]):
        done = tf("report", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), arguments


# in a browser

PIXELS = "canvas => canvas.toDataURL()"
AT = "([name, x, y]) => [...document.querySelectorAll(name)[0].getContext('2d').getImageData(x, y, 1, 1).data]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page, opened from disk without a network; it may neither complain nor ask for anything."""
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 900})
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready]")
    faults.remove(page_file.as_uri())
    yield page
    context.close()
    assert faults == []


def frame_of(page: Any) -> int:
    return int(page.inner_text("#where").split()[1])


def pictures(page: Any) -> list[str]:
    return [canvas.evaluate(PIXELS) for canvas in page.query_selector_all("canvas")]


@pytest.mark.slow
def test_a_prompt_is_text_and_nothing_else(page: Any) -> None:
    assert page.evaluate("window.hacked") is None
    assert [caption.text_content() for caption in page.query_selector_all("figcaption span")] == ["source", *PROMPTS]
    assert page.evaluate("document.querySelectorAll('b').length") == page.locator(".facts b, .legend b").count()


@pytest.mark.slow
def test_play_moves_every_clip_and_pauses(page: Any) -> None:
    from playwright.sync_api import expect

    before = pictures(page)
    page.click("#play")
    assert page.get_attribute("#play", "aria-pressed") == "true"
    expect(page.locator("#where")).to_contain_text(re.compile(r"^frame [1-9]"))
    page.click("#play")
    at, paused = frame_of(page), pictures(page)
    assert at > 0 and all(now != then for now, then in zip(paused, before, strict=True))
    page.wait_for_timeout(400)
    assert (frame_of(page), pictures(page)) == (at, paused)


@pytest.mark.slow
def test_play_keeps_the_clips_time_and_begins_again(page: Any) -> None:
    seconds = page.evaluate(
        """() => new Promise(done => {
            const where = document.getElementById('where'), seen = [];
            new MutationObserver(() => {
                seen.push([where.textContent, performance.now()]);
                const starts = seen.filter(([text]) => text.startsWith('frame 0'));
                if (starts.length === 2) done((starts[1][1] - starts[0][1]) / 1000);
            }).observe(where, {childList: true});
            document.getElementById('play').click();
        })"""
    )
    assert seconds == pytest.approx(FRAMES / RATE, abs=0.25)


@pytest.mark.slow
def test_buttons_and_arrow_keys_step_one_frame(page: Any) -> None:
    steps = [
        ("#forward", 1), ("#forward", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("#back", 1), ("Home", 0), ("#back", 0),
        ("End", FRAMES - 1), ("#forward", FRAMES - 1),
    ]  # fmt: skip
    for action, expected in steps:
        page.click(action) if action.startswith("#") else page.keyboard.press(action)
        assert frame_of(page) == expected, action
    assert page.inner_text("#where") == f"frame {FRAMES - 1} · {(FRAMES - 1) / RATE:.2f} s"


@pytest.mark.slow
def test_dragging_moves_the_split_between_source_and_edit(page: Any) -> None:
    box = page.locator("#compare").bounding_box()
    between = range(SIZE * 3 // 8, SIZE * 5 // 8)  # whatever is dragged to a quarter or three quarters passes here
    x, y = next((x, y) for x in between for y in range(SIZE) if len({*map(tuple, colours(page, x, y))}) == 3)
    source, first, second = colours(page, x, y)

    def dragged_to(share: float) -> list[int]:
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        return list(page.evaluate(AT, ["#comparison", x, y]))

    assert dragged_to(0.75) == source
    assert dragged_to(0.25) == first
    page.check("input[name=edit][value='2']")
    assert page.evaluate(AT, ["#comparison", x, y]) == second
    page.focus("#split")
    page.keyboard.press("End")
    assert page.evaluate(AT, ["#comparison", SIZE - 1, y]) == page.evaluate(AT, ["canvas.clip", SIZE - 1, y])


def colours(page: Any, x: int, y: int) -> list[list[int]]:
    """What the source and the two edits show at a pixel."""
    return [page.evaluate(AT.replace("[0]", f"[{clip}]", 1), ["canvas.clip", x, y]) for clip in range(3)]


@pytest.mark.slow
def test_a_keyframe_or_a_place_of_a_chart_is_gone_to(page: Any) -> None:
    button = page.locator(".strip button").last
    button.click()
    assert frame_of(page) == int(button.inner_text()) > 0
    assert button.get_attribute("aria-current") == "true"
    page.locator(".plot").first.click(position={"x": 1, "y": 20})
    assert frame_of(page) == 1, "the chart of neighbours begins at frame 1"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_cut_off(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert all(each["width"] >= 100 for each in (c.bounding_box() for c in page.query_selector_all("canvas")))


@pytest.mark.slow
def test_every_control_has_a_name(page: Any) -> None:
    unnamed = """() => [...document.querySelectorAll('button, input')].filter(each =>
        !(each.ariaLabel || each.textContent.trim() || each.closest('label')?.textContent.trim())).length"""
    assert page.evaluate(unnamed) == 0


def test_the_page_carries_its_data_as_json(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    data = json.loads(text.split('<script type="application/json" id="player">')[1].split("</script>")[0])
    assert [len(clip) for clip in data["clips"]] == [FRAMES] * 3
    assert (data["width"], data["height"]) == (SIZE, SIZE)

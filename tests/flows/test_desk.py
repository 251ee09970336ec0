"""A team's day at a real server and a real worker: runs are handed over, watched, cancelled, killed, and go on."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.deployments import described
from store.store import Store
from tests.flows.desks import AtDesk, environment_in, tf
from tests.flows.server import get, wait_for
from tests.stages.clips import write_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = ["decode_frames", "invert_frames", "extract_tokens", "match_tokens", "edit_keyframes", "propagate_tokens"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "woman-running.mp4", frames=18, width=32, height=32)


def edit(clip: Path, model: Path, prompt: str, *more: object) -> list[object]:
    """`tf run` with six steps of the tiny model."""
    return ["run", clip, "--prompt", prompt, "--model", model, "--steps", 6, "--device", "cpu", *more]


def digests(store: Path) -> dict[str, str]:
    """Key → digest of everything in a store."""
    return {record.hex: record.digest for record in Store(store).records()}


def test_up_again_starts_nothing_and_the_deployments_are_those_of_the_file(desk: AtDesk) -> None:
    before = desk.state()
    again = desk.tf("up", "--json")
    assert (again.code, again.json["started"]) == (0, False)
    assert desk.state() == before
    found = {each["name"]: each for each in desk.post("/deployments/filter")[1]}
    assert found.keys() == {each["name"] for each in described()}
    for each in described():
        there = found[each["name"]]
        assert (there["entrypoint"], there["work_pool_name"]) == (each["entrypoint"], "tokenflow")
        assert there["enforce_parameter_schema"] is True
    schedule = found["collect-garbage"]["schedules"][0]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "0 4 * * *")
    assert found["collect-garbage"]["global_concurrency_limit"]["limit"] == 1
    assert found["collect-garbage"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    automations = desk.post("/automations/filter")[1]
    assert [each["name"] for each in automations] == ["tokenflow: mark dead runs as crashed"]


def test_a_run_is_handed_over_watched_and_shown(desk: AtDesk, clip: Path, tiny_folder: Path) -> None:
    begun = desk.tf(*edit(clip, tiny_folder, "a marble statue", "--detach", "-o", "out.mp4", "--store", desk.store))
    assert begun.code == 0, begun.err
    run = begun.out.strip()
    watched = desk.tf("watch", run[:8], "--json")
    assert watched.code == 0, watched.err
    assert watched.json["state"] == "Completed"
    assert "decode: Completed" in watched.err
    assert (desk.home / "out.mp4").is_file()
    shown = desk.flow_run(run)
    assert shown["name"] == "edit · woman-running · 'a marble statue'"
    assert {"tokenflow", "video:woman-running", f"model:{tiny_folder.name}"} <= set(shown["tags"])
    tasks = desk.task_runs(run)
    assert "invert · frames 0–15" in [each["name"] for each in tasks]
    assert {"stage:invert_frames", "cpu"} <= set(next(t for t in tasks if t["name"].startswith("invert"))["tags"])
    assert {record.stage for record in Store(desk.store).records()} == set(STAGES)


def test_a_run_without_an_output_has_a_page_that_links_its_report_and_clip(
    desk: AtDesk, clip: Path, tiny_folder: Path
) -> None:
    video = next(label for label in cached_videos(desk) if label.startswith("woman-running"))
    moved = clip.rename(clip.with_name("elsewhere.mp4"))  # a worker has no need of the file
    try:
        code, run = start(desk, "edit-cached", edit={"video": video, "prompts": ["a bronze statue"]})
        assert code == 201, run
        done = desk.tf("watch", run["id"])
    finally:
        moved.rename(clip)
    assert done.code == 0, done.err
    states = [(each["name"].split(" · ")[0], each["state_name"]) for each in desk.task_runs(run["id"])]
    assert states[:4] == [(verb, "Cached") for verb in ("decode", "invert", "extract", "match")]
    page = pages(desk, run["id"])[0]["data"]
    assert "`a bronze statue`" in page
    assert "data:image/webp" in page
    addresses = [part.split(")")[0] for part in page.split("](") if part.startswith("http://127.0.0.1")]
    assert [address.rpartition(".")[2] for address in addresses] == ["html", "mp4"]
    for address in addresses:
        assert len(urllib.request.urlopen(address, timeout=60).read()) > 1000
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(addresses[0].rpartition("/")[0] + "/", timeout=10)


def cached_videos(desk: AtDesk) -> list[str]:
    """What the form of edit-cached offers."""
    deployment = get(desk.api, "/deployments/name/edit-cached/edit-cached")
    field = deployment["parameter_openapi_schema"]["definitions"]["CachedEdit"]["properties"]["video"]
    return list(field["anyOf"][0]["enum"])


def start(desk: AtDesk, name: str, **parameters: Any) -> tuple[int, Any]:
    """Start a run of a deployment, as its form does."""
    deployment = get(desk.api, f"/deployments/name/{name}/{name}")
    return desk.post(f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)


def pages(desk: AtDesk, run: str) -> list[Any]:
    asked = {"flow_run_id": {"any_": [run]}, "type": {"any_": ["markdown"]}}
    return list(desk.post("/artifacts/filter", artifacts=asked)[1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["x"] * 500}, "prompts"),
        ({"prompts": ["  "]}, "prompts"),
        ({"editor": "pnpp"}, "pnpp"),
        ({"guidance_scale": 1000}, "1000"),
        ({"steps": "many"}, "many"),
        ({"size": "large"}, "large"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=lambda wrong: next(iter(wrong)) if isinstance(wrong, dict) else "",
)
def test_a_wrong_value_is_refused_before_the_run_starts(desk: AtDesk, wrong: dict[str, Any], said: str) -> None:
    code, answer = start(desk, "edit-video", config={"video": "clip.mp4", "prompts": ["a statue"], **wrong})
    assert code in (409, 422), answer
    assert said in json.dumps(answer)


def test_what_only_the_worker_can_know_ends_the_run_with_one_sentence(desk: AtDesk, clip: Path) -> None:
    given = {"video": str(clip), "prompts": ["a statue"]}
    cases = {
        "no such video": ({"config": {**given, "video": "/nowhere/clip.mp4"}}, "/nowhere/clip.mp4"),
        "no model here": ({"config": {**given, "model": "/nowhere/model"}}, "/nowhere/model"),
        "no GPU here": ({"config": given, "runtime": {"device": "cuda"}}, "no CUDA device"),
        "no store": ({"config": given, "store": "s3://127.0.0.1:9/nothing"}, "s3://"),
    }
    runs = {name: start(desk, "edit-video", **parameters)[1]["id"] for name, (parameters, _) in cases.items()}
    for name, (_, said) in cases.items():
        done = desk.tf("watch", runs[name], "--json")
        assert (done.code, done.json["state"]) == (1, "Failed"), (name, done.err)
        assert said in done.json["message"], name
        assert "Traceback" not in json.dumps(desk.post("/logs/filter", logs={"flow_run_id": {"any_": [runs[name]]}})[1])
        assert pages(desk, runs[name])[0]["data"].startswith("# "), name


def running(desk: AtDesk, run: str, stage: str) -> Any:
    """The run, once it is in a stage."""

    def look() -> Any:
        return any(t["name"].startswith(stage) and t["state_name"] == "Running" for t in desk.task_runs(run))

    return wait_for(look, f"{stage} does not begin")


def test_cancelling_stops_a_run_of_the_worker_and_keeps_what_it_committed(
    desk: AtDesk, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    asked = edit(clip, tiny_folder, "a wooden statue", "--store", tmp_path / "store", "-o", tmp_path / "o.mp4")
    with desk.holding(tmp_path / "store", "invert_frames"):
        run = desk.tf(*asked, "--detach").out.strip()
        running(desk, run, "invert")
        worker = psutil.Process(desk.state()["worker"]["pid"])
        done = desk.tf("cancel", run, "--json")
        assert (done.code, done.json["state"]) == (0, "Cancelled"), done.err
        wait_for(lambda: not worker.children(), "the run's process goes on")
    assert desk.tf("watch", run).code == 130
    assert len(digests(tmp_path / "store")) == 1
    assert not (tmp_path / "o.mp4").exists()
    assert "cancelled" in pages(desk, run)[0]["data"]
    assert desk.tf("cancel", run).code == 0  # over already, and said so


def test_a_sweep_is_handed_over_watched_and_cancelled(
    desk: AtDesk, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "store"

    def handed_over(*more: object) -> str:
        asked = edit(clip, tiny_folder, "a stone statue", "--grid", "seed=1,2", "--store", place, "--detach", *more)
        begun = desk.tf("sweep", *asked[1:])
        assert begun.code == 0, begun.err
        return begun.out.strip()

    watched = desk.tf("watch", handed_over()[:8], "--json")
    assert (watched.code, watched.json["message"]) == (0, "2 edits"), watched.err
    assert watched.json["name"] == "sweep · 1 video × 1 prompt × 2 settings"
    assert len([*Store(place).records("propagate_tokens")]) == 2

    with desk.holding(place, "invert_frames"):
        run = handed_over("--inversion-steps", 8)
        wait_for(lambda: desk.flow_run(run)["state_name"] == "Running", "the sweep does not begin")
        done = desk.tf("cancel", run, "--json")
        assert (done.code, done.json["state"]) == (0, "Cancelled"), done.err
        worker = psutil.Process(desk.state()["worker"]["pid"])
        wait_for(lambda: not worker.children(), "the sweep's process goes on")
    assert len([*Store(place).records("propagate_tokens")]) == 2


def test_killed_worker_and_run_are_named_marked_and_retried_to_the_same_bytes(
    desk: AtDesk, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    asked = edit(clip, tiny_folder, "a wooden statue")
    assert desk.tf(*asked, "--store", tmp_path / "calm", "-o", tmp_path / "calm.mp4", "--engine", "direct").code == 0
    with desk.holding(tmp_path / "store", "extract_tokens"):
        run = desk.tf(*asked, "--store", tmp_path / "store", "-o", tmp_path / "o.mp4", "--detach").out.strip()
        running(desk, run, "extract")
        worker = psutil.Process(desk.state()["worker"]["pid"])
        for process in [worker, *worker.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
    found = wait_for(lambda: _named_dead(desk, run), "the dead run is not noticed")
    assert "tf doctor --mend" in found["way_out"]
    desk.tf("doctor", "--mend")
    assert desk.flow_run(run)["state_name"] == "Crashed"
    desk.post(f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"}, force=True)
    assert desk.tf("up", "--store", desk.store, "--json").json["api"] == desk.api  # brings back what died
    assert desk.tf("watch", run).code == 0
    assert digests(tmp_path / "store") == digests(tmp_path / "calm")
    names = [(t["name"].split(" · ")[0], t["state_name"]) for t in desk.task_runs(run)]
    assert {("decode", "Cached"), ("invert", "Cached")} <= {*names}


def _named_dead(desk: AtDesk, run: str) -> Any:
    findings = desk.tf("doctor", "--json").json["findings"]
    return next((each for each in findings if each["what"] == "flow runs" and run in each["found"]), None)


def test_down_ends_what_up_started_and_nothing_else(tmp_path: Path, desk: AtDesk) -> None:
    environment = {**environment_in(tmp_path), "PREFECT_API_URL": desk.api}
    own = tf(environment, "up", "--pool", "second", "--store", tmp_path / "store", "--json")
    assert own.code == 0, own.err
    assert own.json["server"] is None
    worker = psutil.Process(own.json["worker"]["pid"])
    assert tf(environment, "down").code == 0
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert get(desk.api, "/health") is True
    assert psutil.Process(desk.state()["worker"]["pid"]).is_running()
    assert "nothing was up" in tf(environment, "down").err
    desk.tf("deploy", "--store", desk.store)  # the second desk has put the deployments into its own pool


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tf(environment_in(tmp_path), "up", "--port", port)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"port {port} is taken" in done.err

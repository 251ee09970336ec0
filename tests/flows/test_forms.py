"""Deployed flows as their forms start them, on a real server: what a form shows and refuses, and what a run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.config import EditConfig, RuntimeConfig
from flows.forms import Sweep, sweep_of
from flows.grid import read_axes
from flows.plan import Plan
from flows.run import run_edit
from flows.run_sweep import planned_sweep
from flows.tasks import Session
from flows.videos import choose_preparation, preparations
from store.errors import InputError
from store.store import Store
from tests.flows.desks import held, holding, post
from tests.flows.runs import Executed, make_plan, small_clip
from tests.flows.server import PATIENCE, get, last_flow_run, task_runs, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CPU = RuntimeConfig(device="cpu")
SMALL: dict[str, Any] = {"steps": 2, "keyframe_interval": 3}
Start = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store that the registered forms are about."""
    return Store(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def start(api: str, room: Store) -> Iterator[Start]:
    """Starts a run of a registered deployment, as its form does: status and answer. None of them ever runs."""
    from prefect.client.orchestration import get_client

    from flows.deployments import described, make_pool, offer_cached_videos, registered

    with get_client(sync_client=True) as client:
        make_pool(client, "forms", "process")
        for each in described():
            registered(each, "forms")
        offer_cached_videos(client, room)
        begun = []

        def begin(name: str, **parameters: Any) -> tuple[int, Any]:
            deployment = get(api, f"/deployments/name/{name}/{name}")
            code, answer = post(api, f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)
            if code == 201:
                begun.append(answer["id"])
            return code, answer

        yield begin
        for run in begun:
            client.delete_flow_run(run)


def form(api: str, name: str) -> dict[str, Any]:
    """The schema behind a form."""
    return dict(get(api, f"/deployments/name/{name}/{name}")["parameter_openapi_schema"])


def offered(api: str) -> list[str]:
    """The videos in the drop-down of edit-cached."""
    field = form(api, "edit-cached")["definitions"]["CachedEdit"]["properties"]["video"]
    return list(field["anyOf"][0]["enum"]) if "anyOf" in field else []


@pytest.mark.parametrize("name", ["prepare-video", "edit-video", "edit-cached", "sweep", "collect-garbage"])
def test_every_field_of_a_form_has_a_title_and_a_kind(start: Start, api: str, name: str) -> None:
    schema = form(api, name)
    groups = [schema, *(each for each in schema["definitions"].values() if "properties" in each)]
    for group in groups:
        for field, shown in group["properties"].items():
            assert shown["title"][0].isupper(), field
            assert {"type": "null"} not in shown.get("anyOf", ()), f"{field} would be two tabs, one of them None"
    if name == "edit-video":
        fields = schema["definitions"]["EditConfig"]["properties"]
        assert list(fields)[:4] == ["video", "prompts", "model", "preset"]
        assert fields["preset"]["enum"] == ["fast", "balanced", "best"]
        assert "pnp" in fields["editor"]["enum"]
        assert fields["steps"]["default"] == 50
        assert (fields["steps"]["minimum"], fields["steps"]["maximum"]) == (1, 1000)


GIVEN = {"video": "clip.mp4", "prompts": ["a statue"]}
TRIED = {"videos": ["clip.mp4"], "prompts": ["a statue"]}
CACHED = {"video": "blake3:3f2a91c0", "prompts": ["a statue"]}
HELD = {"editor": "controlnet", "controls": [{"kind": "canny", "strength": 0.8}]}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("edit-video", {"config": GIVEN | {"preset": "fast", "size": None, "frames": "0:4", "guidance_stop": None}}),
        ("edit-video", {"config": EditConfig.model_validate(GIVEN).model_dump(mode="json")}),
        ("edit-video", {"config": GIVEN, "runtime": CPU.model_dump(mode="json"), "store": None, "output": "o.mp4"}),
        ("prepare-video", {"config": {"video": "clip.mp4"}}),
        ("edit-cached", {"edit": CACHED}),
        ("edit-cached", {"edit": CACHED | {"mask": "3f2a91c0", "mask_feather": 4, "loras": ["film.safetensors:0.5"]}}),
        ("edit-cached", {"edit": CACHED | HELD}),
        ("sweep", {"sweep": TRIED | {"settings": [{"mask_from": "cross-attention:dog"}, {"mask": "dog.png"}]}}),
        ("sweep", {"sweep": TRIED | {"settings": [{"options": {"seed": 3, "blend": "nearest"}}]}}),
        ("sweep", {"sweep": TRIED | {"loras": ["a.safetensors"], "settings": [{"preset": "fast"}, HELD]}}),
        ("collect-garbage", {"collection": {"max_size": "20GB", "older_than": "30d"}}),
        ("collect-garbage", {}),
    ],
)
def test_a_form_that_is_filled_in_rightly_is_taken(start: Start, name: str, parameters: dict[str, Any]) -> None:
    code, answer = start(name, **parameters)
    assert code == 201, answer


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("edit-video", {"config": GIVEN | {"preset": "fastest"}}, "fastest"),
        ("edit-video", {"config": GIVEN | {"frames": "some"}}, "some"),
        ("edit-video", {"config": GIVEN, "runtime": {"device": "tpu"}}, "tpu"),
        ("prepare-video", {"config": {"video": "clip.mp4", "steps": 0}}, "steps"),
        ("edit-cached", {"edit": {"video": "", "prompts": ["a statue"]}}, "video"),
        ("edit-cached", {"edit": {"video": "3f2a91c0", "prompts": []}}, "prompts"),
        ("edit-cached", {"edit": CACHED | {"controls": [{"kind": "cany"}]}}, "cany"),
        ("edit-cached", {"edit": CACHED | {"mask_from": "attention:dog"}}, "attention:dog"),
        ("edit-cached", {"edit": {"video": "3f2a91c0", "prompts": ["x"] * 500}}, "prompts"),
        ("sweep", {"sweep": TRIED | {"videos": []}}, "videos"),
        ("sweep", {"sweep": TRIED | {"settings": [{"editor": "pnpp"}]}}, "pnpp"),
        ("collect-garbage", {"collection": {"max_size": "much"}}, "much"),
    ],
)
def test_a_wrong_value_is_refused_naming_it(start: Start, name: str, parameters: dict[str, Any], said: str) -> None:
    code, answer = start(name, **parameters)
    assert (code, said in answer["detail"]) == (409, True), answer


def test_a_preset_is_its_options_and_what_is_given_goes_first() -> None:
    fast = EditConfig.model_validate(GIVEN | {"preset": "fast", "feature_reuse": None})
    assert (fast.guidance_stop, fast.feature_reuse) == (0.6, 2)
    assert EditConfig.model_validate(GIVEN | {"preset": "fast", "guidance_stop": 0.9}).guidance_stop == 0.9
    assert EditConfig.model_validate(GIVEN | {"preset": "balanced"}) == EditConfig.model_validate(GIVEN)


def prepare(room: Store, clip: Path, model: Path, **more: Any) -> Any:
    """The state in which a served preparation ends."""
    from flows.deployed import prepare_video

    config = {"video": clip, "model": str(model), **SMALL, **more}
    return prepare_video(config=config, store=room.place, runtime=CPU, return_state=True)


def put(room: Store, video: str, *prompts: str, **more: Any) -> Any:
    """The state in which a served edit of a prepared video ends."""
    from flows.deployed import edit_cached

    edit = {"video": video, "prompts": prompts, **more}
    return edit_cached(edit=edit, store=room.place, runtime=CPU, return_state=True)


def test_a_prepared_video_is_offered_and_edited_where_its_file_is_not(
    start: Start, api: str, room: Store, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    clip = small_clip(tmp_path / "ball.mp4")
    assert prepare(room, clip, Path(tiny_folder.name)).is_completed()
    assert last_flow_run().name == "prepare · ball"
    (label,) = offered(api)
    assert label.startswith(f"ball · 7 frames · 32×32 · {tiny_folder.name}")

    clip.unlink()
    monkeypatch.chdir(tmp_path)  # the model was named from another folder
    assert put(room, label, "a blue ball").is_completed()
    run = last_flow_run()
    assert run.name == "edit · ball · 'a blue ball'"
    assert {"video:ball", f"model:{tiny_folder.name}"} <= set(run.tags)
    found = [(each.name, each.state.name) for each in task_runs(run, 6)]
    assert found[:4] == [(verb, "Cached") for verb in ("decode", "invert", "extract", "match")]
    assert [state for _, state in found[4:]] == ["Completed", "Completed"]

    key = preparations(room)[0].video.key
    assert put(room, key[:15], "a blue ball").is_completed()
    assert {each.state.name for each in task_runs(last_flow_run(), 6)} == {"Cached"}


def test_a_sweep_of_the_command_line_is_one_of_a_form(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    options: dict[str, Any] = {"video": clip, "model": str(tiny_folder), **SMALL, "preset": "fast", "mask_feather": 2}
    grid = ["steps=2,3", "blend=nearest", "guidance_scale=0,2", "pnp.attention=0.3", "seed=1,2"]
    planned = planned_sweep(options, {}, ["a red ball", "a blue ball"], read_axes(grid), store)
    edits = [each.plan.config for each in sorted(planned.combinations, key=lambda each: each.number)]
    sweep = sweep_of(edits)
    assert (len(edits), len(sweep.settings), len(sweep.prompts)) == (16, 8, 2)
    again = Sweep.model_validate_json(sweep.model_dump_json())
    assert [edit for edit, _ in again.edits()] == edits
    assert again.settings[0].options.keys() == {"blend", "seed", "guidance_scale"} | {
        "keyframe_interval", "guidance_stop", "feature_reuse",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [({"steeps": 3}, "--steeps"), ({"blend": "soft"}, "--blend 'soft'"), ({"seed": -1}, "--seed -1")],
)
def test_an_option_that_a_sweep_cannot_use_is_named(api: str, options: dict[str, Any], said: str) -> None:
    from flows.deployed import sweep

    state: Any = sweep(sweep={**TRIED, "settings": [{"options": options}]}, return_state=True)
    assert state.is_failed() and said in state.message and "\n" not in state.message


@pytest.mark.parametrize(
    ("video", "prompt", "said"),
    [("0123abcd", "a blue ball", "is no prepared video of"), ("{key}", "a \x01 ball", "holds control characters")],
)
def test_what_a_form_cannot_know_ends_the_run_with_a_sentence(
    start: Start, room: Store, video: str, prompt: str, said: str
) -> None:
    state = put(room, video.format(key=preparations(room)[0].key[:12]), prompt)
    assert state.is_failed()
    assert said in state.message
    assert "\n" not in state.message
    assert last_flow_run().run_count == 1


def test_a_run_at_the_desk_is_offered_and_one_into_another_store_is_not(
    start: Start, api: str, room: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    before = offered(api)
    clip = small_clip(tmp_path / "other.mp4", frames=5)
    run_edit(make_plan(clip, tiny_folder, tmp_path / "elsewhere"), tmp_path / "out.mp4", "prefect")
    assert offered(api) == before
    run_edit(make_plan(clip, tiny_folder, room), tmp_path / "out.mp4", "prefect")
    assert {label.split(" · ")[0] for label in offered(api)} == {"ball", "other"}


@pytest.mark.parametrize("frames", [None, "0:4", "2:7", "1:6:2"])
def test_a_video_prepared_before_records_told_of_it_is_known_all_the_same(
    clip: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: str | None
) -> None:
    from flows.deployed import cached_plan
    from flows.forms import CachedEdit

    whole = Session.note
    monkeypatch.setattr(
        Session,
        "note",
        lambda *given: {k: v for k, v in whole(*given).items() if k not in ("described", "model_place")},
    )
    plan = make_plan(clip, tiny_folder, tmp_path / "store", frames=frames)
    run_edit(plan, tmp_path / "out.mp4", "direct")
    again = cached_plan(CachedEdit(video=plan.match.key.hex[:8], prompts=("a red ball",)), plan.store.place, CPU)
    assert again.keys.keys() == plan.keys.keys()
    assert again.to_compute() == []


def test_several_preparations_of_a_video_are_told_apart(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for steps in (2, 3):
        run_edit(make_plan(clip, tiny_folder, store, steps=steps), tmp_path / "out.mp4", "direct")
    labels = [each.label for each in preparations(store)]
    assert len(set(labels)) == 2
    for label in labels:
        assert choose_preparation(store, label).label == label
    with pytest.raises(InputError, match=r"names several prepared videos.*2 steps.*"):
        choose_preparation(store, preparations(store)[0].video.key[:15])


def test_a_sweep_goes_on_after_a_failure_and_names_it(
    api: str, clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed
) -> None:
    from prefect.client.orchestration import get_client

    from flows.deployed import sweep

    missing = tmp_path / "missing.mp4"
    tried = {
        "videos": [missing, clip], "prompts": ["a red ball", "a blue ball"], "model": str(tiny_folder), "steps": 2,
    }  # fmt: skip
    state: Any = sweep(sweep=tried, store=str(tmp_path / "store"), runtime=CPU, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("2 of 4 edits failed: missing.mp4, 'a red ball', setting 1:")
    assert executed.models == 1
    assert executed.stages["invert_frames"] == 1
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=200)
        tables = [each for each in client.read_artifacts() if each.key == "tokenflow-sweep"]
    names = {each.name for each in runs}
    assert {"sweep · 2 videos × 2 prompts × 1 setting", "edit · clip · 'a blue ball'"} <= names
    rows = json.loads(str(tables[-1].data))
    assert [row["state"] for row in rows] == ["Failed"] * 2 + ["Completed"] * 2


def test_garbage_is_collected_and_told_in_a_table(api: str, clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    from flows.deployed import collect_garbage

    plan = make_plan(clip, tiny_folder, tmp_path / "store")
    run_edit(plan, tmp_path / "out.mp4", "direct")
    nothing: Any = collect_garbage(store=plan.store.place, return_state=True)
    assert (nothing.is_completed(), nothing.message[:7]) == (True, "freed 0")
    asked = {"max_size": "1KB", "keep_edits": True}
    for dry in (True, False):
        state: Any = collect_garbage(collection={**asked, "dry_run": dry}, store=plan.store.place, return_state=True)
        assert state.is_completed()
        assert state.message.startswith("would free" if dry else "freed")
        assert (plan.store.find(plan.match.key) is None) != dry
    assert last_flow_run().name == "gc · 1 KB"
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["tokenflow-gc"]))
        newest = max(client.read_artifacts(artifact_filter=wanted), key=lambda table: str(table.created))
    assert f"match_tokens/{plan.match.key.hex[:12]}" in str(newest.data)
    assert "edit_keyframes" not in str(newest.data)


def test_two_served_runs_of_one_video_at_once_compute_it_once_and_the_waiting_one_says_so(
    api: str, clip: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    program = """
        import sys
        from flows.edit_flow import edit_video
        clip, model, store, prompt = sys.argv[1:]
        config = {"video": clip, "model": model, "prompts": [prompt], "steps": 2, "keyframe_interval": 3}
        edit_video(config=config, store=store, runtime={"device": "cpu"})
    """
    store, environment = tmp_path / "store", {**os.environ, **held(tmp_path)}
    with holding(tmp_path, store, "invert_frames"), get_client(sync_client=True) as client:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(program), clip, tiny_folder, store, prompt], env=environment
            )
            for prompt in ("a first ball", "a second ball")
        ]

        def waited() -> bool:
            runs = {each.name: each.id for each in client.read_flow_runs(limit=200)}
            pair = [runs.get(f"edit · clip · 'a {which} ball'") for which in ("first", "second")]
            if None in pair:
                return False
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=pair)), limit=200)
            return any(log.message.startswith("waiting for") for log in logs)

        wait_for(waited, "no run says that it waits")
    assert [each.wait(PATIENCE) for each in processes] == [0, 0]
    computed = [stage["key"] for run in Store(store).runs() for stage in run["stages"] if not stage["hit"]]
    assert len(computed) == len(set(computed)) == 4 + 2 * 2


def test_a_form_thins_frames_out_as_the_command_line_does(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from flows.deployed import cached_plan
    from flows.forms import CachedEdit, PrepareConfig

    asked = PrepareConfig.model_validate({"video": clip, "model": str(tiny_folder), **SMALL, "fps": 16})
    config = EditConfig(prompts=("a red ball",), **asked.model_dump())
    plan = make_plan(clip, tiny_folder, tmp_path / "store", fps=16)
    assert plan.decode.spec.fps == "16" and len(plan.taken) == 5
    assert Plan(config, CPU, plan.store).decode.key == plan.decode.key
    run_edit(plan, tmp_path / "out.mp4", "direct")
    again = cached_plan(CachedEdit(video=plan.match.key.hex[:8], prompts=("a blue ball",)), plan.store.place, CPU)
    assert again.to_compute() == [node for pair in again.edits for node in pair]

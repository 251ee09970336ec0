"""A run that was killed goes on where it was: what was done of a stage, and inside an edit, is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.plan import Node
from flows.tasks import Quiet, Session
from stages import propagate_tokens
from stages.editing import passes
from store.draft import Draft
from store.store import Store
from tests.flows.runs import digests, small_clip
from tests.flows.watched import Event, plan_of, run, watch

ROOT = Path(__file__).parents[2]
FRAMES, STEPS = 20, 6  # two parts of invert_frames, two of the stages that are divided by timestep

Events = list[Event]


class Stopped(Exception):
    """Somebody stopped it."""


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=FRAMES)


@pytest.fixture(scope="module")
def events() -> Iterator[Events]:
    """What was asked of the model since the list was cleared."""
    heard: Events = []
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, heard.append)
        yield heard


@pytest.fixture(scope="module")
def asked(long_clip: Path, tiny_folder: Path) -> Callable[..., dict[str, Any]]:
    """The plan of a small edit in a store, in JSON; `runtime` and whatever else is given are changed."""

    def make(place: Path, runtime: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        config = {
            "video": str(long_clip), "model": str(tiny_folder), "steps": STEPS, "keyframe_interval": 4,
            "prompts": ["a red ball"], **changed,
        }  # fmt: skip
        return {"config": config, "runtime": runtime or {}, "store": str(place / "store")}

    return make


Undisturbed = Callable[..., tuple[dict[Any, str], Events]]


@pytest.fixture(scope="module")
def undisturbed(
    asked: Callable[..., dict[str, Any]], events: Events, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """Digests and events of runs when nothing goes wrong: a preview where there is to be one, then the edit."""
    known: dict[str, tuple[dict[Any, str], Events]] = {}

    def make(previewed: bool = False, **options: Any) -> tuple[dict[Any, str], Events]:
        name = json.dumps([previewed, options])
        if name not in known:
            events.clear()
            plan = asked(tmp_path_factory.mktemp("undisturbed"), **options)
            for preview in [True] * previewed + [False]:
                result = run(plan, preview)
            known[name] = digests(result), list(events)
        return known[name]

    return make


@pytest.fixture(scope="module")
def killing() -> Iterator[Callable[..., int]]:
    """Makes a run in another process that is killed at an event; says how that process ended."""
    command = [sys.executable, "-m", "tests.flows.watched"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def kill(plan: dict[str, Any], event: int, preview: bool = False) -> int:
            process.stdin.write(json.dumps({"plan": plan, "event": event, "preview": preview}) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield kill
        process.stdin.close()


def number(events: Events, stage: str, share: float) -> int:
    """The number of the event after which `share` of a stage's events are done, counted from 1."""
    own = [place for place, event in enumerate(events, 1) if event.stage == stage]
    return own[int(share * (len(own) - 1))]


def onward(events: Events, killed: int, feature_reuse: int = 1) -> Events:
    """Events from the beginning of what was in hand at number `killed`: a part, and of an edit a whole step."""
    last = events[killed - 1]
    part = last.stage, last.part
    own = {place: event.at for place, event in enumerate(events) if (event.stage, event.part) == part}
    if last.stage in ("edit_keyframes", "propagate_tokens"):
        visited = list(dict.fromkeys(own.values()))
        whole = visited[visited.index(last.at) // feature_reuse * feature_reuse]
        own = {place: at for place, at in own.items() if at == whole}
    return events[min(own) :]


def nothing_but_whole_artifacts(place: Path) -> None:
    """What a killed run leaves to be found has every byte that was promised."""
    store = Store(place / "store")
    for record in store.records():
        assert store.find(record.hex) is not None and store.verify(record) == []


UNFITTING = {"runtime": {"token_budget": 0}}  # tokens are matched as they are extracted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "share", "previewed", "options"),
    [
        ("invert_frames", 0.9, False, {}),
        ("extract_tokens", 0.95, False, {}),
        ("match_tokens", 0.95, False, {}),
        ("match_tokens", 0.95, False, UNFITTING),
        ("propagate_tokens", 0.8, False, {}),
        ("propagate_tokens", 1.0, False, {"solver": "dpmpp_2m"}),
        ("propagate_tokens", 0.8, False, {"editor": "sdedit", "attended_keyframes": 3}),
        ("propagate_tokens", 0.85, False, {"feature_reuse": 2, "attended_keyframes": 3}),
        ("edit_keyframes", 0.8, True, {}),
        ("propagate_tokens", 0.8, True, {}),
    ],
)
def test_a_killed_run_does_again_only_what_was_in_hand(
    stage: str, share: float, previewed: bool, options: dict[str, Any], undisturbed: Undisturbed, events: Events,
    asked: Callable[..., dict[str, Any]], killing: Callable[..., int], tmp_path: Path,
) -> None:  # fmt: skip
    """SIGKILL after a pass, in a process of its own."""
    expected, all_events = undisturbed(previewed, **options)
    plan, at = asked(tmp_path, **options), number(all_events, stage, share)
    previews = [True] * previewed + [False]
    before = 0
    if previewed and stage == "propagate_tokens":
        previews, before = [False], sum(event.stage != stage for event in all_events)
        run(plan, preview=True)
    assert killing(plan, at - before, preview=previews[0]) == -9
    nothing_but_whole_artifacts(tmp_path)
    events.clear()
    for preview in previews:
        result = run(plan, preview)
    assert events == onward(all_events, at, options.get("feature_reuse", 1))
    assert digests(result) == expected


@pytest.mark.slow
def test_a_run_that_is_killed_at_every_turn_still_ends(
    undisturbed: Undisturbed, events: Events, asked: Callable[..., dict[str, Any]], killing: Callable[..., int],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Killed after as many events as the longest part has, and one: every run finishes at least a part or a step."""
    expected, all_events = undisturbed()
    longest = max(Counter((event.stage, event.part) for event in all_events).values())
    plan, ends = asked(tmp_path), list[int]()
    while 0 not in ends and len(ends) < 20:
        ends.append(killing(plan, longest + 1))
        nothing_but_whole_artifacts(tmp_path)
    assert ends == [-9] * (len(ends) - 1) + [0] and len(ends) > 3
    events.clear()
    assert digests(run(plan)) == expected
    assert events == []


def stopping(events: Events, at: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Stops a run at its event number `at`."""

    def told(event: Event) -> None:
        events.append(event)
        if len(events) == at:
            raise Stopped

    return lambda patch: watch(patch, told)


class Totals(Quiet):
    """Progress that remembers what each stage began with."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}

    def begin(self, node: Node, total: int, done: int = 0) -> None:
        self.begun[node.stage] = total


def stopped_edit(plan: dict[str, Any], at: int) -> None:
    """A run that an error stops at its event number `at`."""
    with pytest.MonkeyPatch.context() as patch:
        stopping([], at)(patch)
        with pytest.raises(Stopped):
            run(plan)


def scratch(place: Path) -> dict[str, Path]:
    """What the draft of the edit keeps."""
    return {path.name: path for path in place.glob("store/drafts/propagate_tokens-*/scratch/*")}


def test_an_edit_that_is_stopped_goes_on_and_progress_shows_what_is_left(
    undisturbed: Undisturbed, events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected, all_events = undisturbed()
    plan, at = asked(tmp_path), number(all_events, "propagate_tokens", 0.8)
    stopped_edit(plan, at)
    kept = scratch(tmp_path)
    assert "at_once.state.4" in kept
    made = plan_of(plan)
    headers = 1000 * len(kept)
    assert sum(path.stat().st_size for path in kept.values()) < made.scratch_bytes(made.edits[0][1]) + headers
    assert made.store.explain(made.edits[0][1].key).reason.startswith("interrupted inside, goes on where it was")
    events.clear()
    totals = Totals()
    result = run(plan, progress=totals)
    assert events == onward(all_events, at) and len(events) < 10
    assert totals.begun == {"propagate_tokens": sum(event.frames for event in events)}
    assert digests(result) == expected
    assert scratch(tmp_path) == {}


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_scratch_is_never_gone_on_from(
    damage: str, undisturbed: Undisturbed, events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected, all_events = undisturbed()
    plan, at = asked(tmp_path), number(all_events, "propagate_tokens", 0.8)
    stopped_edit(plan, at)
    newest = scratch(tmp_path)["at_once.state.4"]
    data = newest.read_bytes()
    middle = len(data) // 2
    newest.write_bytes(
        data[:middle] if damage == "cut" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    )
    events.clear()
    result = run(plan)
    before = all_events.index(onward(all_events, at)[0])  # the last event of the step before, counted from 1
    assert events == onward(all_events, before)
    assert digests(result) == expected


def test_another_precision_begins_the_edit_anew(
    undisturbed: Undisturbed, events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Its numbers are others: what the record says it was computed on is true of all of it."""
    expected, all_events = undisturbed()
    stopped_edit(asked(tmp_path), number(all_events, "propagate_tokens", 0.8))
    events.clear()
    result = run(asked(tmp_path, runtime={"precision": "float32"}))
    assert events == [event for event in all_events if event.stage == "propagate_tokens"]
    assert digests(result) == expected


def test_seconds_of_an_edit_are_those_of_all_its_runs(
    undisturbed: Undisturbed, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    _, all_events = undisturbed()
    at = number(all_events, "propagate_tokens", 0.8)
    heard: Events = []
    with pytest.MonkeyPatch.context() as patch:

        def slow(event: Event) -> None:
            heard.append(event)
            if event.stage == "propagate_tokens" and len(heard) == number(all_events, "propagate_tokens", 0):
                time.sleep(1)
            if len(heard) == at:
                raise Stopped

        watch(patch, slow)
        with pytest.raises(Stopped):
            run(asked(tmp_path))
    uses = {use.node.stage: use for use in run(asked(tmp_path)).uses}
    assert sum(uses[stage].artifact.record.seconds for stage in ("edit_keyframes", "propagate_tokens")) > 1


# The clip in windows

WINDOWS = [range(16), range(16, FRAMES)]
FEW: dict[str, Any] = {"steps": 2, "editor": "sdedit"}


@pytest.fixture(scope="module")
def in_windows() -> Iterator[None]:
    """Windows of 16 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "WINDOW_FRAMES", 16)
        yield


@pytest.fixture(scope="module")
def at_once(
    in_windows: None, asked: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, str]:
    """Digests of a run that edits both windows and the keyframes at once."""
    return digests(run(asked(tmp_path_factory.mktemp("at once"), **FEW)))


def work_on_a_draft(plan: dict[str, Any], window: range | None) -> list[range]:
    """Write one window into the draft of a previewed edit, leave it as a worker that is stopped; what is missing."""
    made = plan_of(plan)
    keyframes, node = made.edits[0]
    roles = zip(("latents", "tokens", "field", "keyframe_edit"), (*made.nodes[1:4], keyframes), strict=True)
    session, missing = Session(made), list[range]()
    with suppress(Stopped), session.draft(node) as draft:
        if window:
            blocks = propagate_tokens.run(
                node.spec, window, edit=keyframes.spec, timesteps=made.timesteps, backbone=session.backbone,
                decoder=session.decoder,
                **{role: made.find(each) for role, each in roles},
            )  # fmt: skip
            draft.write(window, blocks)
        missing = draft.missing()
        raise Stopped
    return missing


def test_windows_that_are_there_are_not_done_again_and_the_bytes_are_those_of_an_edit_at_once(
    at_once: dict[Any, str], events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = asked(tmp_path, **FEW)
    run(plan, preview=True)
    assert work_on_a_draft(plan, WINDOWS[1]) == WINDOWS[:1]
    events.clear()
    totals = Totals()
    result = run(plan, progress=totals)
    assert {(event.stage, event.part) for event in events} == {("propagate_tokens", 0)}
    assert totals.begun == {"propagate_tokens": sum(event.frames for event in events)}
    assert digests(result) == at_once


def test_a_previewed_edit_that_is_stopped_goes_on_and_has_the_bytes_of_one_at_once(
    at_once: dict[Any, str], events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan = asked(tmp_path, **FEW)
    run(plan, preview=True)
    stopped_edit(plan, 5)
    assert "frames_0_20.state.1" in scratch(tmp_path)
    events.clear()
    assert digests(run(plan)) == at_once
    assert events and plan_of(plan).timesteps[0] not in {event.at for event in events}


def test_an_edit_at_once_that_is_stopped_between_two_windows_only_decodes_the_rest(
    at_once: dict[Any, str], events: Events, asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    plan, write = asked(tmp_path, **FEW), Draft.write

    def writes(draft: Draft, part: range, *given: Any) -> None:
        if draft.key.stage == "propagate_tokens" and part == WINDOWS[1]:
            raise Stopped
        write(draft, part, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draft, "write", writes)
        with pytest.raises(Stopped):
            run(plan)
    assert work_on_a_draft(plan, None) == WINDOWS[1:]
    events.clear()
    assert digests(run(plan)) == at_once
    assert events == []


def test_windows_of_a_temporal_decoder_are_not_done_again_and_do_not_show(
    in_windows: None, events: Events, asked: Callable[..., dict[str, Any]], temporal_folder: Path, tmp_path: Path
) -> None:
    at_once = digests(run(asked(tmp_path / "at once", decoder=str(temporal_folder), **FEW)))
    for window in WINDOWS:
        plan = asked(tmp_path / f"from {window.start}", decoder=str(temporal_folder), **FEW)
        run(plan, preview=True)
        assert work_on_a_draft(plan, window) == [each for each in WINDOWS if each != window]
        events.clear()
        totals = Totals()
        assert digests(run(plan, progress=totals)) == at_once
        assert totals.begun == {"propagate_tokens": sum(event.frames for event in events)}

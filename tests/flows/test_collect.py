"""A collection takes nothing from a run that goes on, and what it took comes back only as far up as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.explain import differences, explain_keys, explain_run
from flows.listing import videos
from flows.plan import STAGES, Plan
from flows.run import run_preview
from stages import propagate_tokens
from store.collect import Limits, collect
from store.errors import InputError
from store.store import Store
from tests.flows.runs import ALL, EDIT, Executed, computed, digests, edit, make_plan
from tests.store.demo import stopped

Plans = Callable[..., Plan]


def collect_all_but(store: Store, plan: Plan, *stages: str) -> None:
    """Collect everything but the artifacts of `stages`, as `tf gc` would with those pinned."""
    kept = [node.key.hex for node in plan.nodes if node.stage in stages]
    for key in kept:
        store.pin(key)
    collect(store, Limits(max_bytes=0))
    for key in kept:
        store.unpin(key)
    assert {record.stage for record in store.records() if store.find(record.recipe)} == set(stages)


GONE: list[tuple[set[str], list[str], list[str]]] = [
    # collected, computed again by the same edit, by another prompt
    ({"extract_tokens", "match_tokens"}, [], ["extract_tokens", "match_tokens", *EDIT]),
    ({"extract_tokens"}, [], ["extract_tokens", *EDIT]),
    ({"invert_frames", "edit_keyframes"}, [], ["invert_frames", *EDIT]),
    ({"propagate_tokens"}, ["propagate_tokens"], EDIT),
    ({"decode_frames"}, ["decode_frames"], ["decode_frames", *EDIT]),
]


@pytest.mark.parametrize("case", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(GONE)))])
def test_what_was_collected_comes_back_only_as_far_up_as_needed(
    case: int, plan: Plans, store: Store, executed: Executed, tmp_path: Path, edited: Any
) -> None:
    gone, for_same, for_other = GONE[case]
    collect_all_but(store, plan(), *(set(ALL) - gone))
    result = edit(plan(), tmp_path)
    assert executed.names == computed(result) == for_same
    for key, digest in digests(result).items():
        assert digest == edited[1][key]
    if for_same:
        collect_all_but(store, plan(), *(set(ALL) - gone))
    executed.clear()
    result = edit(plan(prompts=("a blue ball",)), tmp_path)
    assert executed.names == computed(result) == for_other
    for (stage, prompt), digest in digests(result).items():
        assert prompt or digest == edited[1][stage, None]


def collecting(run: Any, store: Store) -> Any:
    """A stage before whose every block everything is collected that may be."""

    def collects(*given: Any, **named: Any) -> Iterator[Any]:
        for block in run(*given, **named):
            collect(store, Limits(max_bytes=0, older_than=0))
            yield block

    return collects


def test_a_run_that_goes_on_loses_nothing_to_a_collection(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path, edited: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = edit(plan(frames="0:4"), tmp_path)
    for module in STAGES.values():
        monkeypatch.setattr(module, "run", collecting(module.run, store))
    monkeypatch.setattr(propagate_tokens, "run_whole", collecting(propagate_tokens.run_whole, store))
    asked = plan(prompts=("a red ball", "a blue ball"))
    assert len(asked.to_compute()) == 2
    result = edit(asked, tmp_path)
    assert computed(result) == EDIT
    assert edited[1].items() <= digests(result).items()
    assert all(store.find(use.node.key) for use in result.uses)
    assert not any(store.find(use.node.key) for use in other.uses)  # nobody had a lease on these
    assert store.leases() == set()


def test_what_is_collected_between_planning_and_running_is_computed_again(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path, edited: Any
) -> None:
    asked = plan()
    assert asked.to_compute() == []
    collect(store, Limits(max_bytes=0))
    result = edit(asked, tmp_path)
    assert computed(result) == ALL
    assert digests(result) == edited[1]


# explained


def test_two_artifacts_differ_by_the_field_of_the_stage_that_made_them_differ(plan: Plans, store: Store) -> None:
    old, new = plan(), plan(inversion_steps=4, prompts=("a blue ball",))
    recipes = {key: summary for each in (old, new) for key, summary in _planned(each).items()}
    found = differences(recipes[old.edits[0][1].key.hex], recipes[new.edits[0][1].key.hex], recipes)
    assert list(map(str, found)) == [
        "invert_frames.num_inversion_steps 2 → 4; re-runs invert onward",
        'edit_keyframes.prompt "a red ball" → "a blue ball"; re-runs edit onward',
    ]
    other = _planned(plan(frames="0:4"))
    assert [str(each) for each in differences(recipes[old.match.key.hex], other["match_tokens"], recipes | other)] == [
        "decode_frames.stop none → 4; re-runs decode onward"
    ]


def _planned(plan: Plan) -> dict[str, Any]:
    """Summaries of artifacts that a plan would make, by key and by stage."""
    from store.summaries import Summary

    made = [
        Summary(node.key.hex, node.stage, node.key, "", 0, 0.0, "2026-01-01T00:00:00+00:00", {}) for node in plan.nodes
    ]
    return {name: summary for summary in made for name in (summary.hex, summary.stage)}


def test_a_key_is_explained_against_the_nearest_and_a_run_against_the_one_that_shares_most(
    plan: Plans, store: Store, executed: Executed, tmp_path: Path
) -> None:
    first = store.runs()[0]["id"]
    assert [row["why"] for row in explain_run(store, first)["stages"]] == ["nothing like it in an earlier run"] * 6
    result = edit(plan(guidance_scale=3.0), tmp_path)
    answer = explain_run(store, "latest")
    assert (answer["run"], answer["against"]) == (result.run, first)
    assert [row["hit"] for row in answer["stages"]] == [True] * 4 + [False] * 2
    assert {row["why"] for row in answer["stages"][:4]} == {"as an earlier run made it"}
    assert {row["why"] for row in answer["stages"][4:]} == {"edit_keyframes.guidance_scale 7.5 → 3"}
    clip = result.uses[-1].node.key.hex
    told = explain_keys(store, clip)
    assert told["sentences"] == ["edit_keyframes.guidance_scale 7.5 → 3; re-runs edit onward"]
    assert explain_keys(store, told["from"], clip)["sentences"] == told["sentences"]
    collect(store, Limits(max_bytes=0))
    edit(plan(guidance_scale=3.0), tmp_path)
    whys = {row["why"] for row in explain_run(store, "latest")["stages"]}
    assert whys == {"it had been collected or dropped since an earlier run"}
    with pytest.raises(InputError, match="are of two stages"):
        explain_keys(store, clip, result.uses[0].node.key.hex)
    with pytest.raises(InputError, match="is the only one of its stage"):
        explain_keys(store, result.uses[0].node.key.hex)


# listed


def test_a_video_is_listed_under_the_name_it_was_last_seen_by(
    plan: Plans, store: Store, clip: Path, tmp_path: Path, executed: Executed
) -> None:
    other = tmp_path / "renamed.mp4"
    other.write_bytes(clip.read_bytes())
    run_preview(plan(video=other, prompts=("a blue ball",)), tmp_path / "x.png", "direct")
    (video,) = videos(store)
    assert (video.name, video.width, video.height, video.frames) == ("renamed.mp4", 32, 32, 7)
    assert video.key.startswith("blake3:")
    assert {each.summary.prompt for each in video.artifacts if each.summary.stage in EDIT} >= {"a blue ball"}
    assert video.bytes == sum(store.objects().values())
    assert len(video.artifacts) == 7


# room


def test_a_draft_that_is_gone_on_with_needs_only_the_rest(
    clip: Path, tiny_folder: Path, tmp_path: Path, executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = make_plan(clip, tiny_folder, tmp_path / "new")
    whole = asked.missing_bytes(asked.to_compute())
    assert whole == sum(asked.needed_bytes(node) for node in asked.nodes)
    with stopped(), asked.store.draft(asked.decode.key, asked.schema(asked.decode)) as draft:
        (part,) = draft.missing()
        draft.write(part, STAGES["decode_frames"].run(asked.decode.spec, part, video=clip))
        raise KeyboardInterrupt
    held = asked.store.drafted_bytes(asked.decode.key)
    assert held > 7 * 32 * 32 * 3 / 4
    assert asked.missing_bytes(asked.to_compute()) == whole - min(held, asked.needed_bytes(asked.decode))

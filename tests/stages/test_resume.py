"""An edit that is stopped inside goes on near where it was, and nobody can tell from its numbers that it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.checks import NonFiniteLatents
from stages.edit_keyframes import Spec
from stages.editing.resuming import STATES_KEPT, NothingKept, Scratch
from tests.tiny.method import Held, Prepared, edit_at_once, edit_of_keyframes, edit_spec, propagate

Pass = tuple[int, int]
"""What the UNet was given: the timestep, and how many frames and branches."""


class Stopped(Exception):
    """Somebody stopped it."""


class Memory:
    """A scratch that outlives a run, as a draft does."""

    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray[Any, Any]] = {}

    def keep(self, name: str, values: np.ndarray[Any, Any]) -> None:
        self.kept[name] = values.copy()

    def recall(self, name: str) -> np.ndarray[Any, Any] | None:
        kept = self.kept.get(name)
        return None if kept is None else kept.copy()

    def forget(self, name: str) -> None:
        self.kept.pop(name, None)

    def states(self) -> list[str]:
        """Names of the steps that are kept whole."""
        return [name for name in self.kept if ".state." in name]


class Watched(StableDiffusion):
    """A model that says what passes it ran, and is stopped when it has run so many."""

    passes: list[Pass]
    limit: int | None = None
    poisoned: int | None = None

    @classmethod
    def of(cls, known: Prepared) -> tuple[Watched, Prepared]:
        """The same clip with such a model."""
        model = cls(known.backbone.pipeline, known.backbone.runtime)
        model.passes = []
        return model, replace(known, backbone=model)

    def predict_noise(self, latents: Any, timestep: int, text: Any, residuals: Any = None) -> Any:
        self.passes.append((timestep, len(latents)))
        noise = super().predict_noise(latents, timestep, text, residuals)
        if len(self.passes) == self.limit:
            raise Stopped
        return noise * float("nan") if timestep == self.poisoned else noise


WAYS = ("at once", "keyframes", "continued")


def do(way: str, known: Prepared, spec: Spec, keyframe_edit: Held, scratch: Scratch) -> Held:
    """One of the ways in which an edit is computed: all that it gives."""
    if way == "keyframes":
        return edit_of_keyframes(known, spec, scratch)
    if way == "continued":
        return propagate(known, spec, keyframe_edit, scratch)
    keyframes, edited = edit_at_once(known, spec, scratch)
    return {f"keyframes' {name}": values for name, values in keyframes.items()} | edited


def equal(ours: Held, theirs: Held) -> bool:
    """To the last bit."""
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def undisturbed(way: str, known: Prepared, spec: Spec) -> tuple[Held, Held, list[Pass]]:
    """What an edit gives that is not stopped, the keyframe edit that it may stand on, and the passes it takes."""
    keyframe_edit = edit_of_keyframes(known, spec) if way == "continued" else {}
    model, known = Watched.of(known)
    return do(way, known, spec, keyframe_edit, NothingKept()), keyframe_edit, model.passes


def left(passes: list[Pass], done: int, timesteps: tuple[int, ...], resumable: list[int]) -> list[Pass]:
    """Passes that remain when `done` of them were run, the result of the last one lost."""
    in_hand = timesteps.index(passes[done - 1][0])
    onward = max((step for step in resumable if step <= in_hand), default=0)
    return [each for each in passes if timesteps.index(each[0]) >= onward]


SETTINGS: dict[str, tuple[dict[str, Any], list[int]]] = {  # and the steps of five that can be gone on from
    "pnp": ({}, [1, 2, 3, 4]),
    "sdedit from the third step": ({"editor": "sdedit", "settings": {"strength": 0.6}}, [3, 4]),
    "pnp from the second step": ({"settings": {"strength": 0.8}, "solver": "dpmpp_2m"}, [2, 3, 4]),
    "of second order": ({"solver": "dpmpp_2m"}, [1, 2, 3, 4]),
    "features reused": ({"feature_reuse": 2}, [2, 4]),
    "features reused, and a branch comes in": (
        {"feature_reuse": 2, "guidance_start": 0.6, "solver": "dpmpp_2m"}, [2, 3],
    ),
    "features reused twice, of second order": ({"feature_reuse": 3, "solver": "dpmpp_2m"}, [3]),
    "few attended keyframes": ({"attended_keyframes": 2}, [1, 2, 3, 4]),
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("way", WAYS)
def test_an_edit_that_is_stopped_goes_on_where_it_was_and_gives_the_same_bits(
    way: str, settings: str, prepared: Prepared
) -> None:
    fields, resumable = SETTINGS[settings]
    spec = edit_spec(**fields)
    expected, keyframe_edit, passes = undisturbed(way, prepared, spec)
    for done in (2, len(passes) // 2, len(passes)):
        scratch = Memory()
        model, known = Watched.of(prepared)
        model.limit = done
        with pytest.raises(Stopped):
            do(way, known, spec, keyframe_edit, scratch)
        assert len(scratch.states()) <= STATES_KEPT
        model, known = Watched.of(prepared)
        assert equal(do(way, known, spec, keyframe_edit, scratch), expected)
        assert model.passes == left(passes, done, prepared.timesteps, resumable)


def test_an_edit_that_is_stopped_again_and_again_still_ends(prepared: Prepared) -> None:
    """After so many passes as one step takes: every run does one more step."""
    spec = edit_spec(solver="dpmpp_2m")
    expected, _, passes = undisturbed("at once", prepared, spec)
    scratch, stopped = Memory(), 0
    while True:
        model, known = Watched.of(prepared)
        model.limit = len(passes) // len(prepared.timesteps) + 1
        try:
            given = do("at once", known, spec, {}, scratch)
        except Stopped:
            stopped += 1
            assert len(scratch.states()) <= STATES_KEPT
            continue
        break
    assert stopped == len(prepared.timesteps) - 1
    assert equal(given, expected)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_after_the_last_step_is_only_decoding(way: str, prepared: Prepared) -> None:
    spec, scratch = edit_spec(), Memory()
    expected, keyframe_edit, _ = undisturbed(way, prepared, spec)
    do(way, prepared, spec, keyframe_edit, scratch)
    model, known = Watched.of(prepared)
    assert equal(do(way, known, spec, keyframe_edit, scratch), expected)
    assert model.passes == []


@pytest.mark.parametrize(
    ("lost", "first"),
    [
        (["state.3"], 2),  # the newest: the one before is gone on from
        (["state.3", "state.2"], 0),
        (["followed.1"], 0),  # then the artifact could not be written
        (["followed.2"], 2),
    ],
)
def test_what_is_lost_of_a_scratch_is_computed_again(lost: list[str], first: int, prepared: Prepared) -> None:
    spec, scratch = edit_spec(), Memory()
    expected, _, passes = undisturbed("at once", prepared, spec)
    model, known = Watched.of(prepared)
    model.limit = next(place for place, (at, _) in enumerate(passes, 1) if at == prepared.timesteps[3])
    with pytest.raises(Stopped):
        do("at once", known, spec, {}, scratch)
    assert sorted(scratch.states()) == ["at_once.state.2", "at_once.state.3"]
    for name in lost:
        scratch.forget(f"at_once.{name}")
    model, known = Watched.of(prepared)
    assert equal(do("at once", known, spec, {}, scratch), expected)
    assert model.passes == [each for each in passes if prepared.timesteps.index(each[0]) >= first]


@pytest.mark.parametrize("feature_reuse", [1, 2])  # with 2, the same frames in other batches
def test_a_scratch_of_another_way_is_not_gone_on_from(prepared: Prepared, feature_reuse: int) -> None:
    """A run that did all frames at once was stopped, then a preview made the keyframes: the rest is another batch."""
    spec, scratch = edit_spec(feature_reuse=feature_reuse), Memory()
    expected, keyframe_edit, passes = undisturbed("continued", prepared, spec)
    edit_at_once(prepared, spec, scratch)
    model, known = Watched.of(prepared)
    assert equal(do("continued", known, spec, keyframe_edit, scratch), expected)
    assert model.passes == passes


@pytest.mark.parametrize("feature_reuse", [1, 2])  # with 2, at a step that reuses
def test_latents_that_became_nan_are_not_gone_on_from(prepared: Prepared, feature_reuse: int) -> None:
    spec, scratch = edit_spec(feature_reuse=feature_reuse), Memory()
    model, known = Watched.of(prepared)
    model.poisoned = prepared.timesteps[3]
    with pytest.raises(NonFiniteLatents, match=f"timestep {prepared.timesteps[3]}"):
        do("at once", known, spec, {}, scratch)
    assert scratch.states() == []

"""Promises of what a run says aloud: an inversion that does not lead back is called so, by its worst frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import flows.remarks
from flows.plan import Plan
from flows.prepare import prepare
from flows.remarks import remarks
from flows.tasks import Session, Use
from stages.invert_frames import checked_frames
from store.store import Store


def inversion(plan: Plan) -> list[Use]:
    artifact = plan.find(plan.invert)
    assert artifact is not None
    return [Use(plan.invert, artifact, True, 0.0)]


def test_a_bad_inversion_is_said_and_a_good_one_is_not(
    plan: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = inversion(plan())
    measured = uses[0].artifact["inversion_psnr"][:]
    assert len(measured) == len(checked_frames(7))
    monkeypatch.setattr(flows.remarks, "LOW_PSNR", float(measured.min()) + 1)
    said = remarks(store, uses)
    assert len(said) == 1
    assert f"frame {checked_frames(7)[int(measured.argmin())]} with {measured.min():.1f} dB" in said[0]
    assert "--source-prompt" in said[0]
    described = [
        replace(use, node=replace(use.node, spec=use.node.spec.model_copy(update={"prompt": "a"}))) for use in uses
    ]
    assert "--source-prompt" not in remarks(store, described)[0], "it was said"
    monkeypatch.setattr(flows.remarks, "LOW_PSNR", float(measured.min()) - 1)
    assert remarks(store, uses) == []


def test_the_second_time_no_array_is_opened(
    plan: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = remarks(store, inversion(plan()))
    monkeypatch.setattr("store.artifact.Artifact.__getitem__", lambda *given: pytest.fail("an array was opened"))
    assert remarks(store, inversion(plan())) == first


def found_mask(plan: Plan) -> list[Use]:
    assert plan.mask is not None
    artifact = prepare(Session(plan)).mask
    assert artifact is not None
    return [Use(plan.mask, artifact(), True, 0.0)]


def test_a_word_that_names_nothing_is_said_and_one_that_names_a_thing_is_not(
    plan: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = found_mask(plan(source_prompt="on source", mask_from="cross-attention:source"))
    known = float(uses[0].artifact["variation"][:].mean())
    monkeypatch.setattr("stages.find_masks.NAMES_NOTHING", known + 0.01)
    [said] = remarks(store, uses)
    assert "'source' may name nothing" in said and f"varies by {known:.2f}" in said
    assert f"tf show {uses[0].artifact.record.hex[:12]}" in said and "--source-prompt" in said
    monkeypatch.setattr("stages.find_masks.NAMES_NOTHING", known - 0.01)
    assert remarks(store, uses) == []
    monkeypatch.setattr("store.artifact.Artifact.__getitem__", lambda *given: pytest.fail("an array was opened"))
    assert remarks(store, uses) == []


def test_a_preposition_names_no_thing_whatever_attends_to_it(
    plan: Callable[..., Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.find_masks.NAMES_NOTHING", 0.0)
    [said] = remarks(store, found_mask(plan(source_prompt="on source", mask_from="cross-attention:on")))
    assert said.startswith("'on' names no thing") and "--mask" in said


@pytest.mark.parametrize(
    ("asked", "of_use", "said"),
    [
        ({"editor": "per-frame", "keyframe_interval": 4}, {"editor": "pnp"}, "--keyframe-interval 4"),
        ({"editor": "joint", "keyframe_placement": "adaptive"}, {"editor": "pnp"}, "--keyframe-placement adaptive"),
        ({"guidance_scale": 1, "negative_prompt": "blue"}, {"guidance_scale": 3}, "--negative-prompt"),
        ({"guidance_scale": 1, "guidance_rescale": 0.5}, {"guidance_scale": 3}, "--guidance-rescale"),
        ({"source_rate": True}, {"frames": "0:6:2"}, "--source-rate"),
    ],
    ids=["interval", "placement", "negative", "rescale", "rate"],
)
def test_an_option_that_shows_nowhere_is_said(
    plan: Callable[..., Plan], asked: dict[str, Any], of_use: dict[str, Any], said: str
) -> None:
    assert sum(note.startswith(f"{said} shows nowhere: ") for note in plan(**asked).notes) == 1
    assert not any("shows nowhere" in note for note in plan(**asked | of_use).notes)

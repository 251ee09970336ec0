"""Promises of what a run says aloud: an inversion that does not lead back is called so, by its worst frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import flows.remarks
from flows.plan import Plan
from flows.remarks import remarks
from flows.tasks import Use
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

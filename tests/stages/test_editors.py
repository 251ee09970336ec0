"""One contract for every editing base, and what each of them promises beside it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from stages import editors
from stages.editors import Conditions, Editor, Injection, Source, pnp, sdedit
from store.errors import InputError
from tests.tiny.method import Prepared, edit, edit_spec, latents_for, rematched

EVERY = editors.names()
NEEDED: dict[str, dict[str, Any]] = {"controlnet": {"controls": [{"strength": 0.5}]}}
"""Editor → settings without which its method does nothing; its ControlNet is that of the fixture `control`."""


def source_of(prepared: Prepared) -> Source:
    text = prepared.backbone.encode_text(["", "an edit"])
    return Source(prepared.latents, prepared.timesteps, prepared.backbone.levels, text, 7.5)


def built(prepared: Prepared, name: str, **settings: float) -> Editor:
    return editors.build(editors.choose(name, dict(settings)), source_of(prepared))


def test_the_editors_there_are() -> None:
    assert len(EVERY) == len(set(EVERY))
    assert {"controlnet", "pnp", "sdedit"} <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
class TestContract:
    def test_its_choice_is_its_identity(self, name: str) -> None:
        choice = editors.choose(name, {})
        module = inspect.getmodule(type(choice))
        assert module is editors
        assert choice.name == name
        assert choice.version >= 1
        assert choice.settings, "defaults are written out"
        assert editors.choose(name, choice.settings) == choice
        assert type(choice).model_validate_json(choice.model_dump_json()) == choice

    def test_an_unknown_setting_is_one_sentence_that_names_the_known(self, name: str) -> None:
        with pytest.raises(InputError) as raised:
            editors.choose(name, {"no_such": 1})
        said = str(raised.value)
        assert name in said
        assert "no_such" in said
        assert all(known in said for known in editors.choose(name, {}).settings)
        assert "\n" not in said

    def test_it_starts_at_one_of_the_steps(self, prepared: Prepared, name: str) -> None:
        assert built(prepared, name).first_step in range(len(prepared.timesteps))

    def test_first_latents_are_those_of_the_frames_asked(self, prepared: Prepared, name: str) -> None:
        editor = built(prepared, name)
        every = editor.first_latents(range(prepared.frames))
        assert every.dtype == torch.float32
        assert every.device.type == "cpu"
        assert every.shape == prepared.latents["clean_latents"].shape
        assert torch.isfinite(every).all()
        some = [9, 2, 5]
        assert torch.equal(editor.first_latents(some), every[some]), "any frames, in any order"
        assert torch.equal(built(prepared, name).first_latents(some), every[some]), "and the same ones again"

    def test_first_latents_keep_no_hold_on_the_artifact(self, prepared: Prepared, name: str) -> None:
        editor = built(prepared, name)
        before = {key: held.copy() for key, held in prepared.latents.items()}
        editor.first_latents([0, 1]).zero_()
        assert all((prepared.latents[key] == held).all() for key, held in before.items())

    def test_it_says_what_the_unet_is_given_and_what_is_injected(self, prepared: Prepared, name: str) -> None:
        editor, source = built(prepared, name), source_of(prepared)
        for step in range(editor.first_step, len(prepared.timesteps)):
            conditions = editor.conditions(step)
            assert isinstance(conditions, Conditions)
            assert conditions.text.shape == source.text.shape
            assert conditions.guidance_scale == 7.5
            assert isinstance(editor.injection(step), Injection)

    def test_it_edits(self, short: Prepared, control: Any, name: str) -> None:
        equipped = short.controlled(control)
        edits = [
            edit(equipped, edit_spec(prompt, editor=name, settings=NEEDED.get(name)))["latents"]
            for prompt in ("one thing", "other words")
        ]
        assert edits[0].shape == short.latents["clean_latents"].shape
        assert abs(edits[0] - edits[1]).max() > 1e-3, "the prompt matters"


def test_an_unknown_editor_is_one_sentence_that_names_the_known() -> None:
    with pytest.raises(InputError, match=r"no editor 'pnpp' in stages/editors; have controlnet, .*pnp, sdedit"):
        editors.choose("pnpp", {})
    for name in ("", "..pnp", "pnp.Editor", "__init__"):
        with pytest.raises(InputError):
            editors.choose(name, {})


@pytest.mark.parametrize(
    ("name", "setting", "value"), [("pnp", "attention", 1.5), ("sdedit", "strength", 0), ("controlnet", "begin", "x")]
)
def test_a_setting_out_of_range_is_one_sentence(name: str, setting: str, value: float) -> None:
    with pytest.raises(InputError, match=setting) as raised:
        editors.choose(name, {setting: value})
    assert "\n" not in str(raised.value)


# pnp


def test_pnp_starts_at_the_inverted_latents(prepared: Prepared) -> None:
    editor = built(prepared, "pnp")
    assert editor.first_step == 0
    expected = torch.from_numpy(prepared.latents["latents"][0]).float()
    assert torch.equal(editor.first_latents(range(prepared.frames)), expected)


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.6, 2), (0.2, 4)])
def test_pnp_may_start_at_cleaner_latents(prepared: Prepared, strength: float, first: int) -> None:
    assert len(prepared.timesteps) == 5
    editor = built(prepared, "pnp", strength=strength)
    assert editor.first_step == first
    expected = torch.from_numpy(prepared.latents["latents"][first]).float()
    assert torch.equal(editor.first_latents(range(prepared.frames)), expected)


@given(attention=st.floats(0, 1), feature=st.floats(0, 1), steps=st.integers(1, 60))
def test_pnp_injects_for_the_first_shares_of_the_steps(attention: float, feature: float, steps: int) -> None:
    source = Source({}, tuple(range(steps)), None, None, 1.0)  # type: ignore[arg-type]
    editor = pnp.Editor(pnp.Spec(attention=attention, feature=feature), source)
    injected = [editor.injection(step) for step in range(steps)]
    for own, share in (([i.attention for i in injected], attention), ([i.feature for i in injected], feature)):
        assert own == sorted(own, reverse=True), "the first steps, without a gap"
        assert abs(sum(own) - share * steps) <= 0.5


# sdedit


@given(strength=st.floats(0.001, 1), steps=st.integers(1, 60))
def test_strength_is_the_share_of_steps_that_sdedit_takes(strength: float, steps: int) -> None:
    source = Source({}, tuple(range(steps)), None, None, 1.0)  # type: ignore[arg-type]
    editor = sdedit.Editor(sdedit.Spec(strength=strength), source)
    taken = steps - editor.first_step
    assert 1 <= taken <= steps
    assert taken == 1 or abs(taken - strength * steps) <= 0.5
    assert sdedit.Editor(sdedit.Spec(strength=1), source).first_step == 0


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_sdedit_noises_the_source_as_diffusers_does_every_frame_alike(prepared: Prepared, strength: float) -> None:
    editor = built(prepared, "sdedit", strength=strength, seed=7)
    clean = torch.from_numpy(prepared.latents["clean_latents"]).float()
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(7))
    scheduler = DDIMScheduler.from_config(dict(prepared.backbone.pipeline.scheduler.config))
    timestep = torch.tensor([prepared.timesteps[editor.first_step]] * len(clean))
    expected = scheduler.add_noise(clean, noise.expand_as(clean), timestep)
    torch.testing.assert_close(editor.first_latents(range(len(clean))), expected, rtol=1e-5, atol=1e-5)
    other = built(prepared, "sdedit", strength=strength, seed=8).first_latents([0])
    assert not torch.allclose(other, expected[:1], atol=1e-2)


def test_sdedit_injects_nothing(prepared: Prepared) -> None:
    editor = built(prepared, "sdedit", strength=1)
    assert {editor.injection(step) for step in range(len(prepared.timesteps))} == {Injection()}


# ddpm


def test_with_the_source_prompt_ddpm_returns_the_source_exactly(prepared: Prepared) -> None:
    """Whatever the first step: what each step adds leads from where it starts to x_0 (section 3.2)."""
    clean = prepared.latents["clean_latents"].astype(np.float32)
    for strength in (0.4, 1.0):
        spec = edit_spec("a source", editor="ddpm", settings={"strength": strength}, guidance_scale=1.0)
        alone = rematched(prepared, keyframe_interval=1, keyframe_offsets=1)
        unjoined = spec.model_copy(update={"attended_keyframes": 1})
        assert np.abs(edit(alone, unjoined)["latents"] - clean).max() < 2e-3


def test_ddpm_draws_latents_around_the_source_alike_for_every_frame(prepared: Prepared) -> None:
    noise = latents_for(prepared, edit_spec(editor="ddpm"))
    clean = prepared.latents["clean_latents"].astype(np.float32)
    for step, timestep in enumerate(prepared.timesteps):
        alpha = prepared.backbone.levels.at(timestep)
        drawn = (noise["latents"][step].astype(np.float32) - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        assert np.abs(drawn - drawn[:1]).max() < 0.05, "float16 apart"
        assert 0.8 < drawn.std() < 1.2
    firsts = [noise["latents"][step][0] for step in range(2)]
    assert abs(np.corrcoef(firsts[0].ravel(), firsts[1].ravel())[0, 1]) < 0.9, "not one draw for all"


def test_the_mean_of_a_ddpm_step_is_diffusers(prepared: Prepared) -> None:
    """DDIMScheduler with eta 1, given no noise."""
    scheduler = DDIMScheduler.from_config(dict(prepared.backbone.pipeline.scheduler.config) | {"clip_sample": False})
    scheduler.set_timesteps(len(prepared.timesteps))
    latents, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for timestep, following in zip(prepared.timesteps, (*prepared.timesteps[1:], None), strict=True):
        theirs = scheduler.step(
            prediction, timestep, latents, eta=1.0, variance_noise=torch.zeros_like(latents)
        ).prev_sample
        ours = prepared.backbone.levels.ddpm_mean(latents, prediction, timestep, following)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

"""Promises of the edit: two stages equal the undivided method, in two branches, with no needless self-attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from stages import invert_frames, propagate_tokens
from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.ddim import noised
from stages.diffusion.patching import patched
from stages.edit_keyframes import Spec
from stages.editing import passes as passes_of_frames
from stages.editing.denoising import Denoiser
from stages.editing.reuse import Reuse
from stages.extract_tokens import SourcePass
from stages.extract_tokens import Spec as ExtractSpec
from tests.tiny.method import (
    Held,
    Prepared,
    edit,
    edit_at_once,
    edit_of_keyframes,
    edit_spec,
    extract,
    invert,
    moving_clip,
    prepare,
    propagate,
    rematched,
)

TOLERANCE = 2e-4  # latents are about 1; batches of other sizes differ by 1e-6, which guidance and five steps enlarge


# The undivided method, written plainly: every step, all frames, with diffusers' own attention scores and scheduler


class Joint:
    """Self-attention over all keyframes at once."""

    def __init__(self, branches: int, source: Tensor | None) -> None:
        self.branches, self.source = branches, source

    def __call__(self, layer: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        row = states.reshape(self.branches, -1, states.shape[-1])
        seen = row if self.source is None else self.source.reshape(1, -1, states.shape[-1]).repeat(self.branches, 1, 1)
        query, key = layer.head_to_batch_dim(layer.to_q(seen)), layer.head_to_batch_dim(layer.to_k(seen))
        scores = layer.get_attention_scores(query, key)
        out = layer.to_out[0](layer.batch_to_head_dim(scores @ layer.head_to_batch_dim(layer.to_v(row))))
        self.base = out.reshape(self.branches, -1, *states.shape[1:])
        return self.base.reshape(states.shape)


class Follow:
    """No attention: each token of each frame is looked up among the keyframes' tokens."""

    def __init__(self, joint: Joint, frames: list[int], keyframes: list[int], index: np.ndarray[Any, Any]) -> None:
        self.joint, self.frames, self.keyframes, self.index = joint, frames, keyframes, index

    def __call__(self, layer: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = []
        for branch in range(self.joint.branches):
            for frame in self.frames:
                before = [place for place, keyframe in enumerate(self.keyframes) if keyframe <= frame]
                after = [place for place, keyframe in enumerate(self.keyframes) if keyframe >= frame]
                previous, following = (before or after[:1])[-1], (after or before[-1:])[0]
                span = self.keyframes[following] - self.keyframes[previous]
                share = (frame - self.keyframes[previous]) / span if span else 0.0
                gamma = self.index[frame].astype(int)
                sides = [
                    self.joint.base[branch, place][gamma[side]] for side, place in enumerate((previous, following))
                ]
                out.append((1 - share) * sides[0] + share * sides[1])
        return torch.stack(out)


@torch.inference_mode()
def undivided(
    known: Prepared, spec: Spec, *, first_step: int = 0, start: Tensor, attention: int = 0, feature: int = 0
) -> Tensor:
    """Edited latents of all frames: at each step the keyframes jointly, then every other frame, then one DDIM step.

    attention, feature   number of steps for which the source is injected
    """
    pipeline, unet, steps = known.backbone.pipeline, known.backbone.unet, len(known.timesteps)
    scheduler = DDIMScheduler.from_config(dict(pipeline.scheduler.config) | {"clip_sample": False})
    scheduler.set_timesteps(steps)
    prompts = [spec.negative_prompt, spec.prompt] if spec.guidance_scale != 1 else [spec.prompt]
    text, original = pipeline.encode_prompt(prompts, "cpu", 1, False)[0], dict(unet.attn_processors)
    latents = start.clone()

    def predicted(frames: list[int], step: int, processors: dict[str, Any]) -> Tensor:
        held = torch.from_numpy(known.tokens["feature"][step, frames]).float().repeat(len(prompts), 1, 1, 1)
        hook = (
            unet.up_blocks[1]
            .resnets[1]
            .conv2.register_forward_hook(lambda module, inputs, output: held if step < feature else None)
        )
        batch, words = latents[frames].repeat(len(prompts), 1, 1, 1), text.repeat_interleave(len(frames), 0)
        try:
            unet.set_attn_processor(original | {f"{name}.processor": own for name, own in processors.items()})
            noise = unet(batch, known.timesteps[step], encoder_hidden_states=words).sample.chunk(len(prompts))
        finally:
            unet.set_attn_processor(dict(original))
            hook.remove()
        return noise[0] if len(noise) == 1 else noise[0] + spec.guidance_scale * (noise[1] - noise[0])

    for step in range(first_step, steps):
        keyframes = known.field["keyframes"][step].tolist()
        others = [frame for frame in range(known.frames) if frame not in keyframes]
        joints = {}
        for name in known.backbone.layers:
            injected = step < attention and name in known.backbone.injected_layers
            source = torch.from_numpy(known.tokens[f"tokens.{name}"][step, keyframes]).float() if injected else None
            joints[name] = Joint(len(prompts), source)
        noise = torch.empty_like(latents)
        noise[keyframes] = predicted(keyframes, step, joints)
        if others:
            follow = {
                name: Follow(joint, others, keyframes, known.field[f"index.{name}"][step])
                for name, joint in joints.items()
            }
            noise[others] = predicted(others, step, follow)
        latents = scheduler.step(noise, known.timesteps[step], latents).prev_sample
    return latents


def noisiest(known: Prepared) -> Tensor:
    return torch.from_numpy(known.latents["latents"][0]).float()


def distance(ours: np.ndarray[Any, Any], theirs: Tensor | np.ndarray[Any, Any]) -> float:
    return float(np.abs(ours - np.asarray(theirs)).max())


@pytest.mark.parametrize("offsets", [1, 2, 4])  # fixed keyframes; two places, the last interval short; the paper
def test_the_two_stages_are_the_undivided_method(prepared: Prepared, offsets: int) -> None:
    known = rematched(prepared, keyframe_offsets=offsets, seed=offsets)
    spec = edit_spec(settings={"attention": 0.4, "feature": 0.6}, negative_prompt="not this")
    assert (len(known.field["support"]) == known.frames) == (offsets == 4)
    edited = edit(known, spec)
    expected = undivided(known, spec, start=noisiest(known), attention=2, feature=3)
    assert edited["latents"].shape == expected.shape
    assert distance(edited["latents"], expected) < TOLERANCE
    without = undivided(known, spec, start=noisiest(known), attention=1, feature=3)
    assert distance(edited["latents"], without) > 20 * TOLERANCE, "one step of injection less would show"


@pytest.mark.parametrize("interval", [1, 7, 20])
def test_so_they_are_for_other_intervals(short: Prepared, interval: int) -> None:
    """Every frame a keyframe; all frames in one interval; an interval longer than the clip."""
    known = rematched(short, keyframe_interval=interval, keyframe_offsets=2)
    spec = edit_spec(guidance_scale=1)
    expected = undivided(known, spec, start=noisiest(known), attention=1, feature=2)
    assert distance(edit(known, spec)["latents"], expected) < TOLERANCE


@pytest.mark.parametrize("offsets", [1, 2, 4])
def test_so_they_are_for_sdedit(prepared: Prepared, offsets: int) -> None:
    known = rematched(prepared, keyframe_offsets=offsets)
    spec = edit_spec(editor="sdedit", settings={"strength": 0.6, "seed": 5}, guidance_scale=3)
    clean = torch.from_numpy(known.latents["clean_latents"]).float()
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(5))
    start = noised(known.backbone.levels, clean, noise, known.timesteps[2])
    expected = undivided(known, spec, start=start, first_step=2)
    assert distance(edit(known, spec)["latents"], expected) < TOLERANCE


def test_what_the_undivided_method_is_compared_by_can_fail(short: Prepared) -> None:
    """Another prompt, other keyframes or another blend move the edit by far more than the tolerance."""
    edited = edit(short, edit_spec())["latents"]
    others = [edit_spec(prompt="something else"), edit_spec(guidance_scale=7.4), edit_spec(settings={"feature": 0.4})]
    for other in others:
        assert distance(edited, edit(short, other)["latents"]) > 20 * TOLERANCE
    for schedule in ({"seed": 1}, {"blend": "sigmoid"}, {"keyframe_interval": 1}):
        assert distance(edited, edit(rematched(short, **schedule), edit_spec())["latents"]) > 20 * TOLERANCE


# No frame is lost


def test_every_frame_is_edited_and_decoded(prepared: Prepared) -> None:
    spec = edit_spec(guidance_scale=1)
    keyframe_edit = edit_of_keyframes(prepared, spec)  # the last interval has three of four frames
    edited = propagate(prepared, spec, keyframe_edit)
    assert edited["rgb"].shape == prepared.rgb.shape
    support = prepared.field["support"]
    assert np.array_equal(keyframe_edit["frame"], support)
    assert np.array_equal(edited["latents"][support], keyframe_edit["clean_latents"])
    assert np.abs(edited["rgb"][support].astype(int) - keyframe_edit["rgb"]).max() <= 1
    assert np.array_equal(keyframe_edit["latents"][0], prepared.latents["latents"][0, support].astype(np.float32))
    for one, other in zip(edited["latents"], edited["latents"][1:], strict=False):
        assert distance(one, other) > 0.01, "frames are in their order, none twice"


def test_latents_before_the_first_step_are_where_the_edit_starts(prepared: Prepared) -> None:
    keyframe_edit = edit_of_keyframes(
        prepared, edit_spec(editor="sdedit", settings={"strength": 0.4}, guidance_scale=1)
    )
    for step in range(3):
        assert np.array_equal(keyframe_edit["latents"][step], keyframe_edit["latents"][3])
    assert distance(keyframe_edit["latents"][4], keyframe_edit["latents"][3]) > 0.01


@pytest.fixture(scope="module")
def one_frame(backbone: StableDiffusion, tiny_folder: Path) -> Prepared:
    return prepare(backbone, tiny_folder, moving_clip(1))


@pytest.mark.parametrize("scale", [1.0, 5.0])
@torch.inference_mode()
def test_one_frame_without_injection_is_the_pipeline_of_diffusers(one_frame: Prepared, scale: float) -> None:
    spec = edit_spec(settings={"attention": 0, "feature": 0}, guidance_scale=scale, negative_prompt="no")
    pipeline = one_frame.backbone.pipeline
    theirs = pipeline(
        "an edit", negative_prompt="no", guidance_scale=scale, num_inference_steps=5, latents=noisiest(one_frame),
        output_type="latent",
    ).images  # fmt: skip
    assert distance(edit(one_frame, spec)["latents"], theirs) < TOLERANCE


# How much is computed


@contextmanager
def counting(unet: Any) -> Iterator[dict[str, list[int]]]:
    """Batch sizes that the UNet is given, and rows for which self-attention's queries are computed."""
    seen: dict[str, list[int]] = {"unet": [], "queries": []}
    hooks = [
        unet.register_forward_pre_hook(lambda module, args: seen["unet"].append(len(args[0]))),
        unet.mid_block.attentions[0]
        .transformer_blocks[0]
        .attn1.to_q.register_forward_pre_hook(
            lambda module, args: seen["queries"].append(
                args[0].shape[0] * (args[0].shape[1] if args[0].ndim == 4 else 1)
            )
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("scale", "branches"), [(7.5, 2), (0.0, 2), (1.0, 1)])
def test_two_branches_never_three(prepared: Prepared, scale: float, branches: int) -> None:
    known, spec = prepared.in_passes_of(64), edit_spec(guidance_scale=scale, settings={"attention": 0})
    keyframes, support, steps = known.field["keyframes"].shape[1], len(known.field["support"]), len(known.timesteps)
    with counting(known.backbone.unet) as seen:
        keyframe_edit = edit_of_keyframes(known, spec)
    assert seen["unet"] == [branches * keyframes, branches * (support - keyframes)] * steps
    assert seen["queries"] == [branches * keyframes] * steps, "self-attention runs for keyframes alone"
    with counting(known.backbone.unet) as seen:
        propagate(known, spec, keyframe_edit)
    assert seen["unet"] == [branches * keyframes, branches * (known.frames - support)] * steps
    assert seen["queries"] == [branches * keyframes] * steps


def test_at_once_no_joint_pass_is_repeated(prepared: Prepared) -> None:
    known, spec = prepared.in_passes_of(64), edit_spec(settings={"attention": 0})
    keyframes, steps = known.field["keyframes"].shape[1], len(known.timesteps)
    with counting(known.backbone.unet) as seen:
        edit_at_once(known, spec)
    support = len(known.field["support"])
    passes = [2 * keyframes, 2 * (support - keyframes), 2 * (known.frames - support)]
    assert seen["unet"] == passes * steps, "every frame once per step, those outside the support in passes of their own"
    assert seen["queries"] == [2 * keyframes] * steps, "no self-attention is executed while propagating"


def test_when_the_support_is_the_clip_propagation_only_decodes(prepared: Prepared) -> None:
    known, spec = rematched(prepared, keyframe_offsets=4), edit_spec(guidance_scale=1)
    keyframe_edit = edit_of_keyframes(known, spec)
    with counting(known.backbone.unet) as seen:
        edited = propagate(known, spec, keyframe_edit)
    assert seen == {"unet": [], "queries": []}
    assert np.array_equal(edited["latents"], keyframe_edit["clean_latents"])


# Frames per pass is a memory knob


def close(ours: Held, theirs: Held) -> None:
    """Floats to float tolerance (float16 may round to its neighbour), pictures to one level."""
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        if values.dtype == np.uint8:
            assert np.abs(ours[name].astype(int) - values).max() <= 1, name
        elif name.startswith("index."):
            assert (ours[name] != values).mean() < 0.01, name  # near ties
        elif values.dtype.kind == "f":
            np.testing.assert_allclose(ours[name], values, rtol=2e-3, atol=TOLERANCE, err_msg=name)
        else:
            assert np.array_equal(ours[name], values), name


@pytest.mark.parametrize("frames_per_pass", [1, 3, 64])
def test_frames_per_pass_changes_no_stage(short: Prepared, frames_per_pass: int) -> None:
    """Against passes of 8; every stage is given the same inputs."""
    other = short.in_passes_of(frames_per_pass)
    inversion = invert_frames.Spec(prompt="a source", num_steps=2, num_inversion_steps=2)
    close(invert(other, inversion), short.latents)
    close(extract(other), short.tokens)
    live = SourcePass(
        ExtractSpec(prompt="a source"), other.latents, other.timesteps, other.backbone, lambda block: None
    )
    close(rematched(other, live).field, short.field)
    spec = edit_spec()
    keyframe_edit = edit_of_keyframes(short, spec)
    close(edit_of_keyframes(other, spec), keyframe_edit)
    close(propagate(other, spec, keyframe_edit), propagate(short, spec, keyframe_edit))


# Both stages at once


@pytest.mark.parametrize(
    "fields", [{}, {"guidance_start": 0.2, "guidance_stop": 0.6}, {"feature_reuse": 2}, {"attended_keyframes": 2}]
)
@pytest.mark.parametrize("offsets", [1, 2, 4])
def test_at_once_both_stages_give_what_they_give_apart(
    prepared: Prepared, offsets: int, fields: dict[str, Any]
) -> None:
    known = rematched(prepared, keyframe_offsets=offsets, seed=3)
    spec = edit_spec(settings={"attention": 0.4, "feature": 0.6}, **fields)
    keyframe_edit, edited = edit_at_once(known, spec)
    apart = edit_of_keyframes(known, spec)
    close(keyframe_edit, apart)
    close(edited, propagate(known, spec, apart))


# Guidance in an interval, deep features reused


def test_outside_the_guidance_interval_one_branch_is_run(prepared: Prepared) -> None:
    """5 steps: guidance at the second and third."""
    known = prepared.in_passes_of(64)
    with counting(known.backbone.unet) as seen:
        edit_at_once(known, edit_spec(guidance_start=0.2, guidance_stop=0.6))
    keyframes, support = known.field["keyframes"].shape[1], len(known.field["support"])
    each = [keyframes, support - keyframes, known.frames - support]
    assert seen["unet"] == [branches * frames for branches in (1, 2, 2, 1, 1) for frames in each]


def test_no_guidance_in_an_empty_interval_and_all_in_a_full_one(short: Prepared) -> None:
    never, always = edit_spec(guidance_start=0.4, guidance_stop=0.4), edit_spec(guidance_start=0, guidance_stop=1)
    assert distance(edit(short, never)["latents"], edit(short, edit_spec(guidance_scale=1))["latents"]) < TOLERANCE
    assert distance(edit(short, always)["latents"], edit(short, edit_spec())["latents"]) == 0
    with pytest.raises(ValueError, match="guidance_start is after guidance_stop"):
        edit_spec(guidance_start=0.5, guidance_stop=0.4)


def test_reused_deep_features_skip_all_but_the_outermost_blocks(prepared: Prepared) -> None:
    executed: list[str] = []
    unet = prepared.backbone.unet
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: executed.append(name))
        for name, module in unet.named_modules()
        if name.split(".")[0] in ("down_blocks", "mid_block", "up_blocks")
        and name.endswith(("attn2", "conv1", "attn1.to_q"))
    ]
    known = prepared.in_passes_of(64)
    edit_at_once(known, edit_spec(guidance_scale=1, feature_reuse=2))
    for hook in hooks:
        hook.remove()
    passes = {name: executed.count(name) for name in set(executed)}
    outermost = ("down_blocks.0", "up_blocks.3")
    attended = {name for name in passes if name.endswith("attn1.to_q")}
    assert {passes[name] for name in attended} == {3}, "the joint pass of every other step, nowhere else"
    passes = {name: times for name, times in passes.items() if name not in attended}
    assert {passes[name] for name in passes if name.startswith(outermost)} == {3 * 3 + 2 * 2}, "two passes where reused"
    assert {passes[name] for name in passes if not name.startswith(outermost)} == {3 * 3}
    assert unet(torch.zeros(1, 4, 8, 10), 1, encoder_hidden_states=torch.zeros(1, 8, unet.config.cross_attention_dim))


def test_deep_features_are_kept_of_the_frames_alone_that_wait_for_others_of_their_pass(
    prepared: Prepared, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven frames in passes of two; two attended: an anchor and blocks of one keyframe, at most two to a pass."""
    monkeypatch.setattr(passes_of_frames, "KEYFRAMES_PER_PASS", 2)
    known = rematched(prepared, keyframe_interval=2, keyframe_offsets=1).in_passes_of(2).controlled(control)
    spec = edit_spec("an edit", "controlnet", {"controls": [{}]}, feature_reuse=3, attended_keyframes=2)
    denoisers, kept = list[Denoiser](), list[set[int]]()

    class Watched(Denoiser):
        def _predict(self, *given: Any) -> Any:
            noise = super()._predict(*given)
            kept.append({*self.controlling.kept} | {frame for _, frame in self.reuse.kept})
            denoisers.append(self)
            return noise

    monkeypatch.setattr(propagate_tokens, "Denoiser", Watched)
    edit_at_once(known, spec)
    assert max(map(len, kept)) <= 1 + 2 + 2 * 2, "the anchor, a pass of keyframes, a pass of the support and of others"
    assert not denoisers[-1].reuse.kept and not denoisers[-1].controlling.kept


def test_what_is_kept_of_a_frame_at_512_pixels_is_as_large_as_the_docs_say() -> None:
    """SD 1.x's structure without weights: 18 MB a branch in half precision (docs/shots.md)."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half()
        latents, text = torch.zeros(1, 4, 64, 64).half(), torch.zeros(1, 77, 768).half()
        reuse = Reuse(unet, [name for name, _ in unet.named_modules() if name.endswith("attn1")], [0])
        with torch.inference_mode(), patched(unet, {}, reuse.keeping([0], 1)):
            unet(latents, torch.zeros(1), encoder_hidden_states=text)
    assert sum(kept.nbytes for kept in reuse.kept.values()) == 2 * (640 + 5 * 320) * 64 * 64 == 18_350_080


def test_deep_features_reused_from_an_equal_step_change_nothing(short: Prepared) -> None:
    """The stubs put in exactly what the last whole pass had there: the same pass again gives the same noise."""
    backbone = short.backbone
    reuse = Reuse(backbone.unet, backbone.layers, [4, 5])
    latents, text = noisiest(short)[:2], backbone.encode_text(["a thing"]).expand(2, -1, -1)
    with torch.inference_mode():
        with patched(backbone.unet, {}, reuse.keeping([4, 5], 1)):
            whole = backbone.predict_noise(latents, 401, text)
        with patched(backbone.unet, {}, None, reuse.reusing([5, 4], 1)):
            again = backbone.predict_noise(latents.flip(0), 401, text)
    torch.testing.assert_close(again.flip(0), whole, rtol=1e-4, atol=1e-5)


def test_a_branch_that_comes_in_is_computed_whole(prepared: Prepared) -> None:
    known = prepared
    spec = edit_spec(feature_reuse=5, guidance_start=0.4, guidance_stop=0.8)
    denoiser = Denoiser(
        spec, range(known.frames), latents=known.latents, tokens=known.tokens, field=known.field,
        timesteps=known.timesteps, backbone=known.backbone,
    )  # fmt: skip
    assert denoiser.whole == [True, False, True, False, False]


# Keyframes beyond the limit


def test_attention_beyond_the_limit_is_another_edit_and_still_an_edit(short: Prepared) -> None:
    known = rematched(short, keyframe_interval=1, keyframe_offsets=1)
    every = edit(known, edit_spec(guidance_scale=1))["latents"]
    some = edit(known, edit_spec(guidance_scale=1, attended_keyframes=3))["latents"]
    enough = edit(known, edit_spec(guidance_scale=1, attended_keyframes=7))["latents"]
    assert np.array_equal(every, enough), "seven keyframes, seven attended"
    assert distance(some, every) > 20 * TOLERANCE


def test_a_model_without_an_injectable_feature_still_edits(short: Prepared) -> None:
    known = replace(short, tokens={name: held for name, held in short.tokens.items() if name != "feature"})
    always, never = (edit_spec(guidance_scale=1, settings={"feature": share}) for share in (1, 0))
    assert distance(edit(known, always)["latents"], edit(short, never)["latents"]) == 0
    assert distance(edit(short, always)["latents"], edit(short, never)["latents"]) > 20 * TOLERANCE

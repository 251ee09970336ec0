"""Promises of the source pass: the tokens are what self-attention was given, and looking at them changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages import extract_tokens
from stages.diffusion.attention import RecordTokens
from stages.diffusion.patching import patched
from store.schemas import Block
from tests.tiny.method import Prepared


def looked_at(prepared: Prepared, step: int, frames: slice) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Inputs of every attn1, output of PnP's convolution and the prediction, by hooks on the unpatched model."""
    unet, inputs, feature = prepared.backbone.unet, dict[str, Tensor](), list[Tensor]()

    def before(name: str) -> Any:
        return lambda module, args, kwargs: inputs.__setitem__(name, args[0] if args else kwargs["hidden_states"])

    hooks = [
        module.register_forward_pre_hook(before(name), with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn1")
    ]
    convolution = unet.up_blocks[1].resnets[1].conv2
    hooks.append(convolution.register_forward_hook(lambda module, args, output: feature.append(output)))
    latents = torch.from_numpy(prepared.latents["latents"][step, frames]).float()
    text = prepared.backbone.encode_text(["a source"]).expand(len(latents), -1, -1)
    prediction = unet(latents, prepared.timesteps[step], encoder_hidden_states=text).sample
    for hook in hooks:
        hook.remove()
    return inputs, feature[0], prediction


@torch.inference_mode()
def test_tokens_are_the_inputs_of_self_attention(prepared: Prepared) -> None:
    for step, frames in [(0, slice(0, 4)), (3, slice(4, 8))]:
        inputs, feature, _ = looked_at(prepared, step, frames)
        assert set(inputs) == set(prepared.backbone.layers)
        for name, expected in inputs.items():
            stored = prepared.tokens[f"tokens.{name}"][step, frames]
            np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
            assert not np.allclose(stored[0], stored[1], atol=1e-2), "frames differ, so a mix-up would show"
        np.testing.assert_allclose(prepared.tokens["feature"][step, frames], feature, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_tokens_are_of_the_kept_level_not_of_the_inversions_pass(prepared: Prepared) -> None:
    """Seen during inversion, the tokens at t would be those of (x_{t−1}, t): that is another array."""
    layer = prepared.backbone.layers[-1]
    latents = torch.from_numpy(prepared.latents["latents"][1, :4]).float()  # one level cleaner than step 0
    text = prepared.backbone.encode_text(["a source"]).expand(4, -1, -1)
    recorder = RecordTokens(prepared.backbone.unet.get_submodule(layer).processor)
    with patched(prepared.backbone.unet, {layer: recorder}):
        prepared.backbone.predict_noise(latents, prepared.timesteps[0], text)
    assert np.abs(recorder.taken().numpy() - prepared.tokens[f"tokens.{layer}"][0, :4]).max() > 0.05


@torch.inference_mode()
def test_the_pass_is_clean(prepared: Prepared) -> None:
    backbone = prepared.backbone
    _, _, plain = looked_at(prepared, 0, slice(0, 4))
    latents = torch.from_numpy(prepared.latents["latents"][0, :4]).float()
    text = backbone.encode_text(["a source"]).expand(4, -1, -1)
    recorders = {name: RecordTokens(backbone.unet.get_submodule(name).processor) for name in backbone.layers}
    with patched(backbone.unet, recorders, {backbone.injected_feature: lambda module, inputs, output: None}):
        assert torch.equal(backbone.predict_noise(latents, prepared.timesteps[0], text), plain)


def test_without_tokens_the_feature_is_still_kept(prepared: Prepared) -> None:
    schema = extract_tokens.outputs(
        extract_tokens.Spec(prompt="a source"), latents=prepared.schemas["latents"], layout=prepared.layout,
        keep_tokens=False,
    )  # fmt: skip
    assert set(schema.variables) == {"feature"}
    assert schema.attrs["tokens_kept"] is False
    blocks = list(
        extract_tokens.run(
            extract_tokens.Spec(prompt="a source"), range(1, 2), latents=prepared.latents,
            timesteps=prepared.timesteps, backbone=prepared.backbone, keep_tokens=False,
        )
    )  # fmt: skip
    assert {block.variable for block in blocks} == {"feature"}
    assert np.array_equal(np.concatenate([block.values[0] for block in blocks]), prepared.tokens["feature"][1])


def test_the_live_pass_gives_the_stored_tokens_and_puts_the_feature(prepared: Prepared) -> None:
    put: list[Block] = []
    source = extract_tokens.SourcePass(
        extract_tokens.Spec(prompt="a source"), prepared.latents, prepared.timesteps, prepared.backbone, put.append
    )
    tokens = source.read(2, range(0, 11))
    for name, values in tokens.items():
        assert np.array_equal(values.numpy(), prepared.tokens[f"tokens.{name}"][2])
    assert [block.start[:2] for block in put] == [(2, 0)]
    assert np.array_equal(put[0].values[0], prepared.tokens["feature"][2])


def test_a_unet_with_too_few_blocks_has_no_feature(prepared: Prepared) -> None:
    layout = prepared.layout.model_copy(update={"feature": None})
    schema = extract_tokens.outputs(
        extract_tokens.Spec(), latents=prepared.schemas["latents"], layout=layout, keep_tokens=True
    )
    assert set(schema.variables) == {f"tokens.{name}" for name in prepared.backbone.layers}

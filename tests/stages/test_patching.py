"""Promises of patching: a model is changed inside the block only, whatever happens in it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.attention import ExtendedAttention, RecordTokens
from stages.diffusion.patching import patched


def hooks_of(unet: Any) -> list[Any]:
    every = [OrderedDict(module._forward_hooks) for module in unet.modules()]
    return [*every, *(OrderedDict(module._forward_pre_hooks) for module in unet.modules())]


def same_processors(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def replacing(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 0


@pytest.fixture
def call(backbone: StableDiffusion) -> Any:
    latents, text = torch.ones(1, 4, 8, 8), backbone.encode_text([""])
    return lambda: backbone.predict_noise(latents, 401, text)


@torch.inference_mode()
def test_processors_and_hooks_are_there_in_the_block_and_gone_after_it(backbone: StableDiffusion, call: Any) -> None:
    unet = backbone.unet
    processors, hooks, plain = dict(unet.attn_processors), hooks_of(unet), call()
    extended = {name: ExtendedAttention(1) for name in backbone.layers}
    with patched(unet, extended, {backbone.injected_feature: replacing}):
        inside = dict(unet.attn_processors)
        assert all(inside[f"{name}.processor"] is extended[name] for name in backbone.layers)
        assert sum(inside[name] is not processors[name] for name in inside) == len(backbone.layers)
        assert not torch.allclose(call(), plain, atol=1e-3), "the hook's output is used"
    assert same_processors(processors, unet.attn_processors)
    assert hooks_of(unet) == hooks
    assert torch.equal(call(), plain)


@torch.inference_mode()
def test_an_error_in_the_middle_of_a_pass_leaves_the_model_as_it_was(backbone: StableDiffusion, call: Any) -> None:
    unet = backbone.unet
    processors, hooks, plain = dict(unet.attn_processors), hooks_of(unet), call()

    def failing(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        raise MemoryError("in the middle")

    extended = {name: ExtendedAttention(1) for name in backbone.layers}
    with pytest.raises(MemoryError), patched(unet, extended, {backbone.injected_feature: failing}):
        call()
    assert same_processors(processors, unet.attn_processors)
    assert hooks_of(unet) == hooks
    assert torch.equal(call(), plain)


def test_a_name_that_is_not_there_leaves_the_model_as_it_was(backbone: StableDiffusion) -> None:
    unet = backbone.unet
    processors, hooks = dict(unet.attn_processors), hooks_of(unet)
    first = backbone.layers[0]
    with pytest.raises(AttributeError), patched(unet, {first: ExtendedAttention(1)}, {"no.such.module": replacing}):
        pass
    with pytest.raises(AttributeError), patched(unet, {first: ExtendedAttention(1), "no.such": None}):
        pass
    assert same_processors(processors, unet.attn_processors)
    assert hooks_of(unet) == hooks


def test_blocks_inside_one_another_are_undone_in_turn(backbone: StableDiffusion) -> None:
    unet, layer = backbone.unet, backbone.layers[3]
    original = unet.get_submodule(layer).processor
    outer, inner = ExtendedAttention(1), RecordTokens(original)
    with patched(unet, {layer: outer}):
        with patched(unet, {layer: inner}):
            assert unet.get_submodule(layer).processor is inner
        assert unet.get_submodule(layer).processor is outer
    assert unet.get_submodule(layer).processor is original

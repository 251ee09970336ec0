"""Promises of the maths of TokenFlow: joint attention, nearest tokens, propagation, each against it written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.diffusion.attention import (
    AveragedByAttention,
    ExtendedAttention,
    PropagatedAttention,
    blended,
    extended_attention,
    gathered_rows,
    keyframe_groups,
)
from stages.diffusion.patching import patched


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Extended attention


def attended_keyframes(keyframes: int, limit: int) -> list[list[int]]:
    """Which keyframes each keyframe attends to."""
    anchors, blocks = keyframe_groups(keyframes, limit)
    attended = dict.fromkeys(anchors, anchors)
    attended |= {own: sorted([*anchors, *block]) for block in blocks for own in block}
    return [attended[own] for own in range(keyframes)]


def in_passes(query: Tensor, key: Tensor, value: Tensor, heads: int, limit: int) -> Tensor:
    """Extended attention of all keyframes, a pass for the anchors and one for each block."""
    anchors, blocks = keyframe_groups(query.shape[1], limit)
    out = torch.zeros_like(value)
    kept = (key[:, anchors], value[:, anchors]) if anchors else None
    if kept:
        out[:, anchors] = extended_attention(query[:, anchors], *kept, heads)
    for block in blocks:
        out[:, block] = extended_attention(query[:, block], key[:, block], value[:, block], heads, 1, kept)
    return out


def written_out(query: Tensor, key: Tensor, value: Tensor, heads: int, limit: int) -> Tensor:
    """softmax(q kᵀ / √d) v, one branch, keyframe, head and token at a time, in float64."""
    branches, keyframes, tokens, channels = query.shape
    depth = channels // heads
    q, k, v = (states.double().reshape(branches, keyframes, tokens, heads, depth) for states in (query, key, value))
    out = torch.zeros_like(q)
    for branch in range(branches):
        for own, others in enumerate(attended_keyframes(keyframes, limit)):
            for head in range(heads):
                keys = torch.cat([k[branch, other, :, head] for other in others])
                values = torch.cat([v[branch, other, :, head] for other in others])
                for token in range(tokens):
                    scores = (keys @ q[branch, own, token, head]) / depth**0.5
                    shares = scores.exp() / scores.exp().sum()
                    out[branch, own, token, head] = (shares[:, None] * values).sum(0)
    return out.reshape(branches, keyframes, tokens, channels).float()


@pytest.mark.parametrize(("keyframes", "limit"), [(1, 2), (3, 16), (4, 4), (5, 4), (7, 3), (6, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_extended_attention_is_a_softmax_over_all_keyframes(keyframes: int, limit: int, heads: int) -> None:
    query, key, value = (random(2, keyframes, 5, 8, seed=seed) for seed in range(3))
    ours = in_passes(query, key, value, heads, limit)
    torch.testing.assert_close(ours, written_out(query, key, value, heads, limit), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("anchored", [True, False])
def test_blocks_of_equal_length_may_share_a_pass(anchored: bool) -> None:
    query, key, value = (random(2, 6, 5, 8, seed=seed) for seed in range(3))
    anchors = (random(2, 2, 5, 8, seed=7), random(2, 2, 5, 8, seed=8)) if anchored else None
    together = extended_attention(query, key, value, 4, 3, anchors)
    for first in (0, 2, 4):
        block = slice(first, first + 2)
        alone = extended_attention(query[:, block], key[:, block], value[:, block], 4, 1, anchors)
        torch.testing.assert_close(together[:, block], alone, rtol=1e-5, atol=1e-6)


def test_alone_a_keyframe_has_plain_self_attention() -> None:
    query, key, value = (random(2, 1, 9, 8, seed=seed) for seed in range(3))
    by_head = [states[:, 0].unflatten(-1, (4, 2)).transpose(1, 2) for states in (query, key, value)]
    plain = torch.softmax(by_head[0] @ by_head[1].mT / 2**0.5, -1) @ by_head[2]
    ours = extended_attention(query, key, value, 4)
    torch.testing.assert_close(ours[:, 0], plain.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_on_a_real_unet_one_keyframe_is_the_unpatched_model(backbone: StableDiffusion) -> None:
    latents, text = random(1, 4, 8, 10).expand(2, -1, -1, -1), backbone.encode_text(["", "a thing"])
    plain = backbone.predict_noise(latents, 401, text)
    processors = {name: ExtendedAttention(branches=2) for name in backbone.layers}
    with patched(backbone.unet, processors):
        joint = backbone.predict_noise(latents, 401, text)
    torch.testing.assert_close(joint, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3), "the branches differ, so a mix-up would show"


@torch.inference_mode()
def test_on_a_real_unet_keyframes_look_at_one_another(backbone: StableDiffusion) -> None:
    latents = random(3, 4, 8, 10)
    text = backbone.encode_text(["a thing"]).expand(3, -1, -1)
    plain = backbone.predict_noise(latents, 401, text)
    with patched(backbone.unet, {name: ExtendedAttention(branches=1) for name in backbone.layers}):
        joint = backbone.predict_noise(latents, 401, text)
        twice = backbone.predict_noise(latents[[0, 0, 0]], 401, text)
    assert (joint - plain).abs().max() > 1e-2
    torch.testing.assert_close(twice, plain[[0, 0, 0]], rtol=1e-4, atol=1e-5)  # equal keyframes add nothing


def reference_layer(changes: dict[str, Any]) -> Any:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=12, heads=3, dim_head=4, **changes).eval()


@pytest.mark.parametrize("changes", [{}, {"qk_norm": "layer_norm"}, {"rescale_output_factor": 2.0}, {"bias": True}])
@torch.inference_mode()
def test_one_keyframe_on_any_attention_layer_is_the_layer_itself(changes: dict[str, Any]) -> None:
    layer = reference_layer(changes)
    states = random(2, 7, 12)
    plain = layer(states)
    layer.set_processor(ExtendedAttention(branches=2))
    torch.testing.assert_close(layer(states), plain, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_source_tokens_give_queries_and_keys_but_not_values() -> None:
    layer = reference_layer({})
    states, source = random(2 * 3, 7, 12), random(3, 7, 12, seed=5)
    processor = ExtendedAttention(branches=2, source=source)
    layer.set_processor(processor)
    out = layer(states)
    values = layer.to_v(states).unflatten(0, (2, 3))
    query, key = (part[None].expand(2, -1, -1, -1) for part in (layer.to_q(source), layer.to_k(source)))
    expected = layer.to_out[0](written_out(query, key, values, 3, 16))
    torch.testing.assert_close(out, expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(processor.taken().flatten(0, 1), out), "T_base is the layer's output after its projection"


@given(keyframes=st.integers(1, 60), limit=st.integers(1, 20))
def test_keyframe_groups(keyframes: int, limit: int) -> None:
    anchors, blocks = keyframe_groups(keyframes, limit)
    assert sorted([*anchors, *(own for block in blocks for own in block)]) == list(range(keyframes)), "each once"
    assert [own for block in blocks for own in block] == sorted(own for block in blocks for own in block)
    attended = attended_keyframes(keyframes, limit)
    assert all(own in others for own, others in enumerate(attended))
    assert max(map(len, attended)) == min(limit, keyframes), "cost is linear in the number of keyframes"
    if keyframes > limit >= 4:
        assert set.intersection(*map(set, attended)) == set(anchors), "all see them, so the look is shared end to end"
        assert min(anchors) < keyframes / 2 < max(anchors) + 1


# Propagation


def test_blended_tokens_are_gathered_and_mixed() -> None:
    base, weight = random(2, 3, 5, 4), torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
    neighbour = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]])
    index = torch.randint(0, 5, (4, 2, 5), generator=torch.Generator().manual_seed(0))
    ours = blended(base, gathered_rows(neighbour, index), weight)
    for branch in range(2):
        for frame in range(4):
            for token in range(5):
                near = [base[branch, neighbour[frame, side], index[frame, side, token]] for side in (0, 1)]
                mixed = weight[frame, 0] * near[0] + weight[frame, 1] * near[1]
                torch.testing.assert_close(ours[branch, frame, token], mixed, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_propagating_a_frame_onto_itself_is_the_joint_pass(backbone: StableDiffusion) -> None:
    """Each frame its own keyframe, each token itself: the gathered output must be the one that was kept."""
    latents, text = random(6, 4, 8, 10), backbone.encode_text(["", "a thing"]).repeat_interleave(3, 0)
    joint = {name: ExtendedAttention(branches=2) for name in backbone.layers}
    with patched(backbone.unet, joint):
        expected = backbone.predict_noise(latents, 401, text)
    own = torch.arange(3)[:, None].expand(3, 2)
    weight = torch.tensor([[1.0, 0.0]] * 3)
    gathered = {}
    for name, processor in joint.items():
        base = processor.taken()
        index = torch.arange(base.shape[2]).expand(3, 2, -1)
        gathered[name] = PropagatedAttention(base, gathered_rows(own, index), weight)
    with patched(backbone.unet, gathered):
        torch.testing.assert_close(backbone.predict_noise(latents, 401, text), expected, rtol=1e-5, atol=1e-6)


# Which layers


@pytest.fixture(scope="module")
def deep(kl_folder: Path) -> StableDiffusion:
    """A model with as many layers as Stable Diffusion 1.x has."""
    return load(str(kl_folder), Runtime())


def test_layers_are_found_by_name_and_in_order_of_execution(deep: StableDiffusion) -> None:
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: called.append(name))
        for name, module in deep.unet.named_modules()
        if name.endswith("attn1")
    ]
    with torch.inference_mode():
        deep.predict_noise(random(1, 4, 8, 10), 1, deep.encode_text([""]))
    for hook in hooks:
        hook.remove()
    assert called == deep.layers
    assert len(called) == 16


def test_injected_layers_are_those_of_plug_and_play(deep: StableDiffusion) -> None:
    assert deep.injected_layers == [
        f"up_blocks.{block}.attentions.{place}.transformer_blocks.0.attn1"
        for block, place in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    ]


# Averages over what is alike


def test_values_are_averaged_as_self_attention_averages_tokens(backbone: StableDiffusion) -> None:
    """Against softmax(q kᵀ / √d) written out; the layer's own output is what it was."""
    name = backbone.layers[-1]
    layer = backbone.unet.get_submodule(name)
    states, values = random(2, 12, layer.to_q.in_features), random(2, 12, seed=1)
    reader = AveragedByAttention(layer.processor, values)
    before = layer(states)
    with patched(backbone.unet, {name: reader}):
        assert torch.equal(layer(states), before)
    query, key = (part(states).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (layer.to_q, layer.to_k))
    shares = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    own = torch.stack([shares[:, head] @ values[..., None] for head in range(layer.heads)]).mean(0)[..., 0]
    assert torch.allclose(reader.taken(), own, atol=1e-5)

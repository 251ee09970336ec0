"""Tokens, correspondences and the two self-attentions of TokenFlow: the maths first, then the diffusers processors.

Source: TokenFlow (arXiv 2307.10373), section 4; extended attention as in section 4.1, propagation as in section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def keyframe_groups(keyframes: int, limit: int) -> tuple[list[int], list[list[int]]]:
    """Which keyframes attend to each other: anchors, and blocks that follow each other over the clip.

    Up to `limit` keyframes are one block and need no anchors: all attend to all. Beyond, half of `limit` are anchors,
    evenly spread, that attend to each other; the others form blocks of the other half, and each attends to its own
    block and to the anchors. So the look is shared end to end, no keyframe attends to more than `limit`, cost grows
    linearly with the clip, and memory does not grow: a block needs no other block.
    """
    if keyframes <= limit:
        return [], [list(range(keyframes))]
    spread_over = limit // 2
    anchors = [(2 * place + 1) * keyframes // (2 * spread_over) for place in range(spread_over)]
    others = [keyframe for keyframe in range(keyframes) if keyframe not in anchors]
    length = limit - spread_over
    return anchors, [others[first : first + length] for first in range(0, len(others), length)]


Keys = tuple[Tensor, Tensor]
"""Keys and values of some keyframes (branch, keyframe, token, channel)."""


def extended_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, blocks: int = 1, anchors: Keys | None = None
) -> Tensor:
    """Self-attention in which a keyframe's queries attend to all keyframes of its block (section 4.1, eq. 2).

    query, key, value   (branch, keyframe, token, channel); the keyframes are `blocks` blocks of equal length
    anchors             keys and values that every block attends to as well
    returns             (branch, keyframe, token, channel), before the output projection
    """
    branches, keyframes, tokens, channels = value.shape

    def by_head(states: Tensor) -> Tensor:  # (…, keyframe, token, channel) → (branch · block, head, token, depth)
        own = states.unflatten(1, (blocks, -1)).flatten(0, 1).flatten(1, 2)
        return own.unflatten(-1, (heads, -1)).transpose(1, 2)

    keys, values = by_head(key), by_head(value)
    if anchors is not None:
        keys, values = (
            torch.cat([own, by_head(others.repeat(1, blocks, 1, 1))], dim=2)
            for own, others in zip((keys, values), anchors, strict=True)
        )
    joint = F.scaled_dot_product_attention(by_head(query), keys, values)
    return joint.transpose(1, 2).reshape(branches, keyframes, tokens, channels)


def gathered_rows(neighbour: Tensor, index: Tensor) -> Tensor:
    """Where in the flattened (keyframe · token) of T_base each token finds its two: (side, frame · token) int64.

    neighbour   (frame, side) int64: position of the previous and the next keyframe in T_base
    index       (frame, side, token) int64: γ
    """
    rows = neighbour[:, :, None] * index.shape[-1] + index
    return rows.transpose(0, 1).flatten(1)


def blended(base_tokens: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """w · T_base[k−][γ⁻] + (1 − w) · T_base[k+][γ⁺] for each token of each frame (section 4.2, eq. 4).

    base_tokens   (branch, keyframe, token, channel)
    rows          (side, frame · token), see `gathered_rows`
    weight        (frame, side), sums to one over side
    returns       (branch, frame, token, channel)
    """
    tokens = base_tokens.shape[2]
    flat = base_tokens.flatten(1, 2)
    previous, following = (flat.index_select(1, side).unflatten(1, (-1, tokens)) for side in rows)
    return following.lerp_(previous, weight[:, 0].to(flat.dtype)[None, :, None, None])


def spread(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of `states` (…, token, channel), normalised where the model does so."""
    query, key = attention.to_q(states), attention.to_k(states)
    heads = attention.heads
    if attention.norm_q is not None:
        query = attention.norm_q(query.unflatten(-1, (heads, -1))).flatten(-2)
    if attention.norm_k is not None:
        key = attention.norm_k(key.unflatten(-1, (heads, -1))).flatten(-2)
    return query, key


@dataclass
class RecordTokens:
    """Runs self-attention as the model would and keeps its input: the tokens φ of this layer."""

    inner: Any  # the processor that the model had
    tokens: Tensor | None = field(default=None, repr=False)

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.tokens = hidden_states
        return self.inner(attention, hidden_states, *args, **kwargs)

    def taken(self) -> Tensor:
        """The tokens (frame, token, channel) of the pass that was run."""
        assert self.tokens is not None, "this layer was not executed"
        return self.tokens


@dataclass
class AttendedWords:
    """Runs cross-attention as the model would, and keeps how much each pixel attends to some words of the prompt.

    places   of the words among the prompt's tokens
    """

    inner: Any  # the processor that the model had
    places: Sequence[int]
    attended: Tensor | None = field(default=None, repr=False)

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        heads = attention.heads
        query, key = (
            states.unflatten(-1, (heads, -1)).transpose(1, 2)
            for states in (attention.to_q(hidden_states), attention.to_k(encoder_hidden_states))
        )
        shares = (query.float() @ key.float().transpose(-1, -2) * attention.scale).softmax(-1)
        self.attended = shares[..., list(self.places)].mean(1).transpose(1, 2)
        return self.inner(attention, hidden_states, encoder_hidden_states, *args, **kwargs)

    def taken(self) -> Tensor:
        """Each word's share of attention (frame, word, token) float32 in the pass that was run."""
        assert self.attended is not None, "this layer was not executed"
        return self.attended


@dataclass
class AveragedByAttention:
    """Runs self-attention as the model would, and averages `values` as it does: each token has that of its likes.

    values   (frame, token) float32
    """

    inner: Any  # the processor that the model had
    values: Tensor = field(repr=False)
    averaged: Tensor | None = field(default=None, repr=False)

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        query, key = (
            states.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for states in spread(attention, hidden_states)
        )
        value = self.values.to(query.dtype)[:, None, :, None].expand_as(query).contiguous()
        self.averaged = F.scaled_dot_product_attention(query, key, value)[..., 0].float().mean(1)
        return self.inner(attention, hidden_states, *args, **kwargs)

    def taken(self) -> Tensor:
        """The averages (frame, token) float32 over all heads in the pass that was run."""
        assert self.averaged is not None, "this layer was not executed"
        return self.averaged


@dataclass
class ExtendedAttention:
    """Joint self-attention of keyframes; keeps its output (after projection, before the residual) as T_base.

    branches   guidance branches in the batch, each with all keyframes in order
    blocks     blocks of equal length that the keyframes form, see `keyframe_groups`
    source     tokens of the source at the keyframes (keyframe, token, channel): PnP takes q and k from them
    anchors    keys and values of the anchors, which every block attends to
    keep_keys  whether these keyframes are the anchors: their keys and values are kept too
    """

    branches: int
    blocks: int = 1
    source: Tensor | None = None
    anchors: Keys | None = field(default=None, repr=False)
    keep_keys: bool = False
    keys: Keys | None = field(default=None, repr=False)
    base_tokens: Tensor | None = field(default=None, repr=False)

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = hidden_states.unflatten(0, (self.branches, -1))
        if self.source is None:
            query, key = spread(attention, states)
        else:
            query, key = (part.expand(self.branches, -1, -1, -1) for part in spread(attention, self.source))
        value = attention.to_v(states)
        if self.keep_keys:
            self.keys = key, value
        joint = extended_attention(query, key, value, attention.heads, self.blocks, self.anchors)
        projected = attention.to_out[1](attention.to_out[0](joint))
        factor = attention.rescale_output_factor
        self.base_tokens = projected if factor == 1 else projected / factor
        return self.base_tokens.flatten(0, 1)

    def taken(self) -> Tensor:
        """T_base of the pass that was run (branch, keyframe, token, channel); given away, once."""
        taken, self.base_tokens = self.base_tokens, None
        assert taken is not None, "this layer was not executed"
        return taken


@dataclass
class PropagatedAttention:
    """Self-attention that is not executed: its output is gathered from the keyframes along the field."""

    base_tokens: Tensor  # (branch, keyframe, token, channel)
    rows: Tensor  # (side, frame · token)
    weight: Tensor  # (frame, side)

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return blended(self.base_tokens, self.rows, self.weight).flatten(0, 1)


def self_attention_layers(names: Sequence[str]) -> list[str]:
    """Of all module names of a UNet, the self-attention layers, found by name and in order of execution."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = [name for name in names if name.split(".")[-1] == "attn1"]
    return sorted(found, key=lambda name: order[name.split(".")[0]])


def cross_attention_layers(unet: Any, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Cross-attention layers of a UNet, found by name, and the grid (height, width) of each for latents of `size`.

    Every down block but the last halves its grid, rounding up; up blocks undo that in turn.
    """
    grids = [size]
    for _ in unet.down_blocks[1:]:
        height, width = grids[-1]
        grids.append((-(-height // 2), -(-width // 2)))
    found = {}
    for name, _module in unet.named_modules():
        if name.split(".")[-1] == "attn2":
            place, _, rest = name.partition(".")
            level = len(grids) - 1 if place == "mid_block" else int(rest.partition(".")[0])
            found[name] = grids[-1 - level] if place == "up_blocks" else grids[level]
    return found


def injected_attention_layers(layers: Sequence[str]) -> list[str]:
    """Decoder self-attention layers that PnP takes q and k of: all but those of its first transformer.

    Source: Plug-and-Play (arXiv 2211.12572), section 4, layers 4–11 of Stable Diffusion's decoder, whose transformers
    have one layer each. SDXL's have up to ten.
    """
    decoder = [name for name in layers if name.startswith("up_blocks.")]
    return [name for name in decoder if _transformer(name) != _transformer(decoder[0])]


def injected_feature(names: Sequence[str]) -> str | None:
    """Module whose output PnP injects: the last convolution of the second residual block where attention begins.

    Source: Plug-and-Play, section 4, layer 4 of Stable Diffusion's decoder, in its second up block; SDXL's first up
    block is as coarse as that. None where a UNet has no such block.

    names   of all modules of a UNet
    """
    decoder = [name for name in self_attention_layers(names) if name.startswith("up_blocks.")]
    feature = ".".join(decoder[0].split(".")[:2]) + ".resnets.1.conv2" if decoder else ""
    return feature if feature in names else None


def _transformer(layer: str) -> str:
    """The module that a self-attention layer's transformer is."""
    return layer.rpartition(".transformer_blocks.")[0]

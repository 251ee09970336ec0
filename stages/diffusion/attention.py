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

SCORES_AT_ONCE = 1 << 24  # cosines held in memory at a time while matching: 64 MiB in float32


def normalized(tokens: Tensor) -> Tensor:
    """Unit tokens in float32: half-precision cosines would flip up to 1 % of the matches."""
    return F.normalize(tokens.float(), dim=-1)


def nearest_tokens(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """For each query token, the key token with the largest cosine: γ[p] = argmax_q cos(φ[p], φ'[q]).

    queries   unit tokens (frame, token, channel) float32
    keys      unit tokens (frame, token, channel), or (1, token, channel) for all frames
    returns   index (frame, token) int64 and similarity (frame, token) float32; ties go to the lowest index
    """
    frames, tokens, _ = queries.shape
    rows = max(1, SCORES_AT_ONCE // (frames * keys.shape[1]))
    best = [(chunk @ keys.mT).max(dim=-1) for chunk in queries.split(rows, dim=1)]
    similarity = torch.cat([chunk.values for chunk in best], dim=1)
    index = torch.cat([chunk.indices for chunk in best], dim=1)
    assert index.shape == (frames, tokens)
    return index, similarity


def attended_keyframes(keyframes: int, limit: int) -> list[list[int]]:
    """Which keyframes each keyframe attends to: all of them, or `limit` when there are more.

    Half of `limit` are the nearest ones (itself among them); the rest are spread evenly over the clip, so that the
    look is shared end to end while cost and memory grow linearly with the number of keyframes.
    """
    if keyframes <= limit:
        return [list(range(keyframes))] * keyframes
    anchors = [(2 * place + 1) * keyframes // (2 * (limit // 2)) for place in range(limit // 2)]
    chosen = []
    for keyframe in range(keyframes):
        nearest = sorted(range(keyframes), key=lambda other: (abs(other - keyframe), other))
        ranked = dict.fromkeys([*nearest[: limit - limit // 2], *anchors, *nearest])
        chosen.append(sorted(list(ranked)[:limit]))
    return chosen


def extended_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, limit: int) -> Tensor:
    """Self-attention in which each keyframe's queries attend to the tokens of all keyframes (section 4.1, eq. 2).

    query, key, value   (branch, keyframe, token, channel)
    limit               keyframes attended to at most, see `attended_keyframes`
    returns             (branch, keyframe, token, channel), before the output projection
    """
    branches, keyframes, tokens, channels = value.shape

    def by_head(
        states: Tensor,
    ) -> Tensor:  # (branch, keyframe, token, channel) → (branch, head, keyframe · token, depth)
        return states.reshape(branches, -1, heads, states.shape[-1] // heads).transpose(1, 2)

    if limit == 1:  # each keyframe on its own: plain self-attention, in one call
        query, key, value = (states.flatten(0, 1)[:, None] for states in (query, key, value))
        return extended_attention(query, key, value, heads, limit=2).reshape(branches, keyframes, tokens, channels)
    if keyframes <= limit:
        joint = F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value))
        return joint.transpose(1, 2).reshape(branches, keyframes, tokens, channels)
    attended = attended_keyframes(keyframes, limit)
    each = [
        F.scaled_dot_product_attention(by_head(query[:, [own]]), by_head(key[:, others]), by_head(value[:, others]))
        for own, others in enumerate(attended)
    ]
    return torch.stack(each, 1).transpose(2, 3).reshape(branches, keyframes, tokens, channels)


def blended(base_tokens: Tensor, neighbour: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """w · T_base[k−][γ⁻] + (1 − w) · T_base[k+][γ⁺] for each token of each frame (section 4.2, eq. 4).

    base_tokens   (branch, keyframe, token, channel)
    neighbour     (frame, side) int64: position of the previous and the next keyframe among the keyframes
    weight        (frame, side) float32, sums to one over side
    index         (frame, side, token) int64: γ
    returns       (branch, frame, token, channel)
    """
    previous, following = (base_tokens[:, neighbour[:, side, None], index[:, side]] for side in (0, 1))
    return torch.lerp(following, previous, weight[:, 0].to(base_tokens.dtype)[None, :, None, None])


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
class ExtendedAttention:
    """Joint self-attention of keyframes; keeps its output (after projection, before the residual) as T_base.

    branches   guidance branches in the batch, each with all keyframes in order
    limit      keyframes attended to at most
    source     tokens of the source at the keyframes (keyframe, token, channel): PnP takes q and k from them
    """

    branches: int
    limit: int
    source: Tensor | None = None
    base_tokens: Tensor | None = field(default=None, repr=False)

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = hidden_states.unflatten(0, (self.branches, -1))
        if self.source is None:
            query, key = spread(attention, states)
        else:
            query, key = (part.expand(self.branches, -1, -1, -1) for part in spread(attention, self.source))
        joint = extended_attention(query, key, attention.to_v(states), attention.heads, self.limit)
        projected = attention.to_out[1](attention.to_out[0](joint))
        self.base_tokens = projected / attention.rescale_output_factor
        return self.base_tokens.flatten(0, 1)

    def taken(self) -> Tensor:
        """T_base of the pass that was run."""
        assert self.base_tokens is not None, "this layer was not executed"
        return self.base_tokens


@dataclass
class PropagatedAttention:
    """Self-attention that is not executed: its output is gathered from the keyframes along the field."""

    base_tokens: Tensor  # (branch, keyframe, token, channel)
    neighbour: Tensor
    weight: Tensor
    index: Tensor

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return blended(self.base_tokens, self.neighbour, self.weight, self.index).flatten(0, 1)


def self_attention_layers(names: Sequence[str]) -> list[str]:
    """Of all module names of a UNet, the self-attention layers, found by name and in order of execution."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = [name for name in names if name.split(".")[-1] == "attn1"]
    return sorted(found, key=lambda name: order[name.split(".")[0]])


def injected_attention_layers(layers: Sequence[str]) -> list[str]:
    """Decoder self-attention layers that PnP takes q and k of: all but the first, at the lowest attention resolution.

    Source: Plug-and-Play (arXiv 2211.12572), section 4, layers 4–11 of Stable Diffusion's decoder.
    """
    return [name for name in layers if name.startswith("up_blocks.")][1:]


INJECTED_FEATURE = "up_blocks.1.resnets.1.conv2"
"""Module whose output PnP injects: the last convolution of the second residual block of the second up block."""

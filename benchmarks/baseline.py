"""The published method as its paper prints it, in one file: what ours is measured against.

Source: TokenFlow (arXiv 2307.10373), algorithm 1, with Plug-and-Play (arXiv 2211.12572) as its editing base. Three
branches go through the UNet together (source, unconditional, conditional); the source's tokens and the field are found
anew at every step, and nothing is kept but the latents. Attention is one fused call, or, as the authors' code has it,
a score matrix written out head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones.stable_diffusion import StableDiffusion
from stages.diffusion.patching import patched

BRANCHES = 3  # source, unconditional, conditional


@dataclass
class JointSelfAttention:
    """Keyframes attend to all keyframes; keeps the source's tokens and what the layer puts out."""

    inject: bool
    head_by_head: bool
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))
    base: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, layer: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keyframes = len(states) // BRANCHES
        self.tokens = states[:keyframes]
        rows = states.reshape(BRANCHES, -1, states.shape[-1])
        query, key, value = layer.to_q(rows), layer.to_k(rows), layer.to_v(rows)
        if self.inject:
            query, key = query[:1].expand_as(query), key[:1].expand_as(key)
        out = attended(query, key, value, layer.heads, self.head_by_head)
        self.base = layer.to_out[0](out).reshape(BRANCHES, keyframes, *states.shape[1:])
        return self.base.flatten(0, 1)


@dataclass
class FollowKeyframes:
    """Every token of every frame is looked up among its two keyframes' tokens, and their outputs are blended."""

    joint: JointSelfAttention
    before: Tensor  # (frame) positions among the keyframes
    after: Tensor
    weight: Tensor  # (frame) of `before`

    def __call__(self, layer: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = F.normalize(states[: len(self.before)].float(), dim=-1)
        keys = F.normalize(self.joint.tokens.float(), dim=-1)
        sides = []
        for side in (self.before, self.after):
            nearest = (tokens @ keys[side].mT).argmax(-1)
            index = nearest[None, :, :, None].expand(BRANCHES, -1, -1, states.shape[-1])
            sides.append(self.joint.base[:, side].gather(2, index))
        weight = self.weight.to(states.dtype)[None, :, None, None]
        return (weight * sides[0] + (1 - weight) * sides[1]).flatten(0, 1)


def attended(query: Tensor, key: Tensor, value: Tensor, heads: int, head_by_head: bool) -> Tensor:
    """softmax(q kᵀ / √d) v over (branch, token, channel)."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    if not head_by_head:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    out = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head].mT * query.shape[-1] ** -0.5
        out.append(scores.softmax(-1) @ value[:, head])
    return torch.stack(out, 2).flatten(2)


@torch.inference_mode()
def edit(
    backbone: StableDiffusion, latents: Tensor, timesteps: Sequence[int], prompt: str, *, guidance_scale: float,
    keyframe_interval: int, pnp_attention: float, pnp_feature: float, head_by_head: bool,
) -> Any:  # fmt: skip
    """Edited frames (frame, height, width, channel) uint8.

    latents   inverted latents (timestep, frame, channel, height, width), noisiest first
    """
    frames, steps = latents.shape[1], len(timesteps)
    text = backbone.encode_text(["", "", prompt])
    generator = torch.Generator().manual_seed(0)
    now = latents[0].clone()
    for step, timestep in enumerate(timesteps):
        pieces = [range(first, min(first + keyframe_interval, frames)) for first in range(0, frames, keyframe_interval)]
        keyframes = [int(piece[int(torch.rand((), generator=generator) * len(piece))]) for piece in pieces]
        inject = step < round(pnp_attention * steps)
        feature = step < round(pnp_feature * steps)
        joints = {
            name: JointSelfAttention(inject and name in backbone.injected_layers, head_by_head)
            for name in backbone.layers
        }
        predicted(backbone, latents[step][keyframes], now[keyframes], timestep, text, joints, feature)
        noise = torch.empty_like(now)

        def follow(
            some: slice, step: int = step, timestep: int = timestep, joints: dict[str, Any] = joints,
            keyframes: list[int] = keyframes, feature: bool = feature, noise: Tensor = noise, now: Tensor = now,
        ) -> None:  # fmt: skip
            sides = neighbours(range(frames)[some], keyframes)
            before, after, weight = (side.to(now.device) for side in sides)
            follows = {name: FollowKeyframes(joint, before, after, weight) for name, joint in joints.items()}
            noise[some] = predicted(
                backbone, latents[step][some], now[some], timestep, text, follows, feature, guidance_scale
            )

        backbone.each_pass(frames, follow)
        following = timesteps[step + 1] if step + 1 < steps else None
        now = backbone.levels.step(now, noise, timestep, following)
    return backbone.decode(now)


def neighbours(frames: Sequence[int], keyframes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the keyframe at or before, and at or after, each frame, and the weight of the first."""
    before, after, weight = [], [], []
    for frame in frames:
        earlier = [place for place, keyframe in enumerate(keyframes) if keyframe <= frame]
        later = [place for place, keyframe in enumerate(keyframes) if keyframe >= frame]
        before.append((earlier or later[:1])[-1])
        after.append((later or earlier[-1:])[0])
        span = keyframes[after[-1]] - keyframes[before[-1]]
        weight.append(1 - (frame - keyframes[before[-1]]) / span if span else 1.0)
    return torch.tensor(before), torch.tensor(after), torch.tensor(weight)


def predicted(
    backbone: StableDiffusion, source: Tensor, latents: Tensor, timestep: int, text: Tensor,
    processors: dict[str, Any], feature: bool, guidance_scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Guided noise (frame, c, h, w) of all three branches in one pass; the source's feature is put into the others."""

    def inject(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        return output[: len(source)].repeat(BRANCHES, 1, 1, 1) if feature else None

    batch, words = torch.cat([source, latents, latents]), text.repeat_interleave(len(latents), 0)
    with patched(backbone.unet, processors, {str(backbone.injected_feature): inject}):
        _, uncond, cond = backbone.predict_noise(batch, timestep, words).unflatten(0, (BRANCHES, -1))
    return uncond + guidance_scale * (cond - uncond)

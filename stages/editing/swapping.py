"""Frames rebuilt with another frame's tokens: what the correspondences of the source are worth, before any edit.

Source: TokenFlow (arXiv 2307.10373), section 4.2 and figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from store.schemas import Arrays

from ..backbones import Backbone
from ..diffusion.attention import ExtendedAttention, PropagatedAttention, gathered_rows
from ..diffusion.choices import Solver
from ..diffusion.matching import nearest_tokens, normalized
from ..diffusion.patching import patched
from ..diffusion.solvers import Sampling

ReadTokens = Callable[[int, range], Mapping[str, Tensor]]
"""(step, frames) → layer → source tokens (frame, token, channel): an artifact's, or a source pass run when asked."""


@torch.inference_mode()
def swapped(
    donor: int, frames: range, *, latents: Arrays, read: ReadTokens, prompt: str, timesteps: tuple[int, ...],
    backbone: Backbone, solver: Solver = "ddim",
) -> Tensor:  # fmt: skip
    """Latents (frame, c, h, w) float32 of `frames` sampled, unguided, on the tokens of frame `donor` alone.

    The donor is sampled plainly beside them. At every layer and timestep no other frame's self-attention is executed:
    its output is the donor's, gathered by each token's nearest token in the donor (cosine of the source's tokens).

    latents   latents (timestep, frame, channel, height, width), of which the noisiest are where sampling starts
    prompt    the one that the frames were inverted with
    """
    text = backbone.encode_text([prompt])
    noisiest = backbone.to_device(latents["latents"][0]).float()
    given, now = noisiest[donor : donor + 1], noisiest[frames.start : frames.stop].clone()
    donating, following_it = Sampling(backbone.levels, solver), Sampling(backbone.levels, solver)
    for timestep, following, step in zip(timesteps, (*timesteps[1:], None), range(len(timesteps)), strict=True):
        noise, base_tokens = _plain(given, timestep, text, backbone)
        given = donating.step(given, noise, timestep, following)
        keys = {name: normalized(tokens) for name, tokens in read(step, range(donor, donor + 1)).items()}

        noise = torch.empty_like(now)

        def do(
            some: slice, step: int = step, timestep: int = timestep, noise: Tensor = noise, now: Tensor = now,
            base_tokens: Mapping[str, Tensor] = base_tokens, keys: Mapping[str, Tensor] = keys,
        ) -> None:  # fmt: skip
            tokens = read(step, frames[some])
            processors = {name: _gathering(base_tokens[name], tokens[name], keys[name]) for name in backbone.layers}
            with patched(backbone.unet, processors):
                noise[some] = backbone.predict_noise(now[some], timestep, text.expand(len(now[some]), -1, -1))

        backbone.each_pass(len(frames), do)
        now = following_it.step(now, noise, timestep, following)
    return now


def _plain(latents: Tensor, timestep: int, text: Tensor, backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise of one frame (1, c, h, w), and what every self-attention layer put out (branch, 1, token, channel)."""
    processors = {name: ExtendedAttention(branches=1) for name in backbone.layers}
    with patched(backbone.unet, processors):
        noise = backbone.predict_noise(latents, timestep, text)
    return noise, {name: processor.taken() for name, processor in processors.items()}


def _gathering(base_tokens: Tensor, tokens: Tensor, keys: Tensor) -> PropagatedAttention:
    """Self-attention of frames with `tokens`, replaced by what one frame with unit tokens `keys` put out."""
    index, _ = nearest_tokens(normalized(tokens), keys)
    neighbour = index.new_zeros(len(index), 2)
    weight = torch.tensor([1.0, 0.0], device=index.device).expand(len(index), 2)
    rows = gathered_rows(neighbour, index[:, None].expand(-1, 2, -1))
    return PropagatedAttention(base_tokens, rows, weight)

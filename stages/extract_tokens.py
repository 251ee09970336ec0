"""Tokens of the source: what every self-attention layer is given in one clean pass over (x_t, t), and PnP's feature.

Source: TokenFlow (arXiv 2307.10373), section 4.2; Plug-and-Play (arXiv 2211.12572), section 4, for the feature.
Differs: tokens are the layer's normed *input* (what the authors' code matches on), and the pass is the plain source
model at the inverted latents, not a source branch that is itself propagated (test_extract_tokens.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from store.schemas import Arrays, Block, Blocks, Frozen, Schema, Variable

from .backbones import Backbone
from .backbones.layout import ModelLayout
from .diffusion.attention import RecordTokens
from .diffusion.chunks import blocks_of, frames_per_chunk
from .diffusion.patching import patched

VERSION = 1
TIMESTEPS_PER_PART = 5


class Spec(Frozen):
    """The prompt of the source pass: the one that the frames were inverted with."""

    prompt: str = ""


def outputs(spec: Spec, *, latents: Schema, layout: ModelLayout, keep_tokens: bool) -> Schema:
    """Tokens per layer (where they are kept) and the injected feature, for every frame and timestep."""
    steps, count = latents.size("timestep"), latents.size("frame")
    assert steps is not None and count is not None
    variables = {}
    if layout.feature is not None:
        channels, height, width = layout.feature
        variables["feature"] = Variable(
            dims=("timestep", "frame", "feature_channel", "feature_height", "feature_width"),
            shape=(steps, count, channels, height, width),
            dtype="float16",
            chunks=(1, frames_per_chunk(count, channels * height * width * 2), channels, height, width),
            description=f"output of {layout.injected_feature}, before the shortcut is added",
            finite=True,
        )
    for layer in layout.layers if keep_tokens else ():
        variables[f"tokens.{layer.name}"] = Variable(
            dims=("timestep", "frame", f"token_{layer.tokens}", f"channel_{layer.channels}"),
            shape=(steps, count, layer.tokens, layer.channels),
            dtype="float16",
            chunks=(1, frames_per_chunk(count, layer.tokens * layer.channels * 2), layer.tokens, layer.channels),
            description="input of this self-attention layer, after its norm",
            finite=True,
        )
    return Schema(
        artifact="tokens",
        variables=variables,
        coordinates={"timestep": latents.coordinates["timestep"]},
        attrs={"tokens_kept": keep_tokens},
        parts=("timestep", TIMESTEPS_PER_PART),
    )


@dataclass
class SourcePass:
    """The source pass, run where it is asked for; `put_feature` receives the feature of the same frames as a block."""

    spec: Spec
    latents: Arrays
    timesteps: tuple[int, ...]
    backbone: Backbone
    put_feature: Callable[[Block], None]

    def __post_init__(self) -> None:
        self.text = self.backbone.encode_text([self.spec.prompt])
        feature = self.backbone.injected_feature
        self.hooked = [feature] if feature else []

    @torch.inference_mode()
    def read(self, step: int, frames: range) -> dict[str, Tensor]:
        """Tokens of each layer (frame, token, channel) float16 on the model's device."""
        backbone, unet = self.backbone, self.backbone.unet
        noisy = backbone.to_device(self.latents["latents"][step, frames.start : frames.stop])
        pieces: list[dict[str, Tensor]] = []
        features: list[Tensor] = []

        def do(some: slice) -> None:
            recorders = {name: RecordTokens(unet.get_submodule(name).processor) for name in backbone.layers}
            own: list[Tensor] = []
            hooks = {name: lambda module, inputs, output: own.append(output.half()) for name in self.hooked}
            with patched(unet, recorders, hooks):
                backbone.predict_noise(noisy[some], self.timesteps[step], self.text.expand(len(noisy[some]), -1, -1))
            pieces.append({name: recorder.taken().half() for name, recorder in recorders.items()})
            features.extend(own)

        backbone.each_pass(len(frames), do)
        if features:
            self.put_feature(Block("feature", (step, frames.start, 0, 0, 0), torch.cat(features)[None].cpu().numpy()))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in backbone.layers}


def run(
    spec: Spec, part: range, *, latents: Arrays, timesteps: tuple[int, ...], backbone: Backbone,
    keep_tokens: bool = True,
) -> Blocks:  # fmt: skip
    """The source pass over all frames at the steps of `part`.

    latents       latents (timestep, frame, channel, height, width)
    keep_tokens   whether tokens are wanted; the feature always is
    yields        tokens.<layer> (timestep, frame, token, channel) and feature (timestep, frame, c, h, w), float16
    """
    features: list[Block] = []
    source = SourcePass(spec, latents, timesteps, backbone, features.append)
    for step in part:
        for frames in blocks_of(latents["latents"].shape[1]):
            tokens = source.read(step, frames)
            for name, values in tokens.items() if keep_tokens else ():
                yield Block(f"tokens.{name}", (step, frames.start, 0, 0), values[None].cpu().numpy())
            yield from features
            features.clear()

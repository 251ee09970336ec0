"""One step of the edit in its two halves: keyframes jointly, then every other frame along the field.

Source: TokenFlow (arXiv 2307.10373), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from store.schemas import Arrays, Frozen

from .. import editors
from ..backbones import Backbone
from ..diffusion.attention import INJECTED_FEATURE, ExtendedAttention, PropagatedAttention
from ..diffusion.chunks import rows
from ..diffusion.ddim import guided
from ..diffusion.patching import Hook, patched

BaseTokens = dict[str, Tensor]
"""T_base: layer → output of the joint self-attention (branch, keyframe, token, channel)."""


class EditSpec(Frozen):
    """What an edit is asked for."""

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = Field(7.5, ge=0, le=100)
    editor: editors.EditorChoice
    attended_keyframes: int = Field(16, ge=1, le=4096)  # beyond so many, each attends to its nearest and to anchors


class Denoiser:
    """The edit under way: knows the source's artifacts, and predicts noise for keyframes and for other frames.

    latents   of invert_frames        tokens   of extract_tokens (its feature only)        field   of match_tokens
    """

    def __init__(
        self, spec: EditSpec, *, latents: Arrays, tokens: Arrays, field: Arrays, timesteps: tuple[int, ...],
        backbone: Backbone,
    ) -> None:  # fmt: skip
        self.spec, self.backbone, self.tokens, self.field = spec, backbone, tokens, field
        self.timesteps = timesteps
        # Differs: at guidance 1 the unconditional branch has no weight and is not run; there never is a source branch.
        prompts = [spec.prompt] if spec.guidance_scale == 1 else [spec.negative_prompt, spec.prompt]
        self.branches = len(prompts)
        text = backbone.encode_text(prompts)
        source = editors.Source(latents, timesteps, backbone.levels, text, spec.guidance_scale)
        self.editor = editors.build(spec.editor, source)

    @property
    def steps(self) -> range:
        """Positions in `timesteps` that this edit visits, in order."""
        return range(self.editor.first_step, len(self.timesteps))

    def keyframes(self, step: int) -> list[int]:
        """Frames that are keyframes at `step`, ascending."""
        return [int(frame) for frame in self.field["keyframes"][step]]

    def joint(self, step: int, latents: Tensor) -> tuple[Tensor, BaseTokens]:
        """Noise of the keyframes (keyframe, c, h, w), edited jointly, and T_base.

        latents   of this step's keyframes (keyframe, c, h, w)
        """
        backbone, injection = self.backbone, self.editor.injection(step)
        processors = {name: ExtendedAttention(self.branches, self.spec.attended_keyframes) for name in backbone.layers}
        if injection.attention:
            for name in backbone.injected_layers:
                source = backbone.to_device(self.field[f"source.{name}"][step])
                processors[name].source = source.to(self.text(step).dtype)
        with patched(backbone.unet, processors, self._feature(step, self.keyframes(step))):
            noise = self._predict(step, latents)
        return noise, {name: processor.taken() for name, processor in processors.items()}

    def propagated(self, step: int, frames: Sequence[int], latents: Tensor, base_tokens: BaseTokens) -> Tensor:
        """Noise (frame, c, h, w) of frames that follow the keyframes: no self-attention is executed.

        latents   of `frames` (frame, c, h, w)
        """
        noise = torch.empty_like(latents)
        for some in self.backbone.passes(len(frames)):
            chosen = frames[some]
            neighbour = self.backbone.to_device(rows(self.field["neighbour"], step, chosen)).long()
            weight = self.backbone.to_device(rows(self.field["weights"], step, chosen))
            processors = {}
            for name, base in base_tokens.items():
                index = self.backbone.to_device(rows(self.field[f"index.{name}"], step, chosen).astype("int64"))
                processors[name] = PropagatedAttention(base, neighbour, weight, index)
            with patched(self.backbone.unet, processors, self._feature(step, chosen)):
                noise[some] = self._predict(step, latents[some])
        return noise

    def step(self, step: int, latents: Tensor, noise: Tensor) -> Tensor:
        """Latents (frame, c, h, w) one DDIM step cleaner."""
        following = self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None
        return self.backbone.levels.step(latents, noise, self.timesteps[step], following)

    def text(self, step: int) -> Tensor:
        """Text (branch, token, channel) that the UNet is given at `step`."""
        return self.editor.conditions(step).text

    def _predict(self, step: int, latents: Tensor) -> Tensor:
        conditions = self.editor.conditions(step)
        text = conditions.text.repeat_interleave(len(latents), dim=0)
        noise = self.backbone.predict_noise(latents.repeat(self.branches, 1, 1, 1), self.timesteps[step], text)
        parts = noise.unflatten(0, (self.branches, len(latents)))
        return parts[0] if self.branches == 1 else guided(parts[0], parts[1], conditions.guidance_scale)

    def _feature(self, step: int, frames: Sequence[int]) -> dict[str, Hook]:
        if not self.editor.injection(step).feature or "feature" not in self.tokens:
            return {}
        feature = self.backbone.to_device(rows(self.tokens["feature"], step, frames))
        repeated = feature.to(self.text(step).dtype).repeat(self.branches, 1, 1, 1)
        return {INJECTED_FEATURE: lambda module, inputs, output: repeated}

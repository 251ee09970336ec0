"""One step of the edit in its two halves: keyframes jointly, then every other frame along the field.

Source: TokenFlow (arXiv 2307.10373), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from store.errors import InputError
from store.schemas import Array, Arrays, Block, Frozen

from .. import editors
from ..backbones import Backbone
from ..diffusion.attention import (
    ExtendedAttention,
    Keys,
    PropagatedAttention,
    gathered_rows,
)
from ..diffusion.checks import NonFiniteLatents, all_finite, finite_frames
from ..diffusion.choices import MOST_REGIONS, Solver
from ..diffusion.chunks import blocks_of, frames_of, rows
from ..diffusion.ddim import guided
from ..diffusion.heaps import give_back_holes
from ..diffusion.patching import Hook, patched
from ..diffusion.solvers import Sampling
from .controlling import Controlling
from .decoding import Decoding
from .masking import edited_in_latents, in_latents, put_back
from .passes import Stretch, apart, spans, stretches
from .reading import read_ahead
from .regions import Region, overlaid
from .resuming import NOTHING_KEPT, Moment, PassedSteps, Scratch
from .reuse import Reuse, Waiting

BaseTokens = dict[str, Tensor]
"""T_base: layer → output of the joint self-attention (branch, keyframe, token, channel)."""

Picture = NDArray[np.uint8]
"""rgb (height, width, channel)."""

Held = tuple[list[int], BaseTokens]
"""T_base, and the positions among the step's keyframes of those it holds."""


class EditSpec(Frozen):
    """What an edit is asked for.

    guidance_start, guidance_stop   shares of the steps between which there is guidance; outside them the prompt's
                                    branch alone is run (Kynkäänniemi et al., arXiv 2404.07724)
    guidance_rescale                how far guidance is kept from raising contrast, see `ddim.guided`
    feature_reuse                   every how many steps the whole UNet is executed, see `reuse`
    pictures_kept                   outside of the mask the pictures too are the source's, see `decoding`
    border_edited                   latent pixels half in the mask are edited whole, see `masking.edited_in_latents`
    guidance_embedded               the UNet itself takes the scale: there is no unconditional branch
    regions                         prompts of parts of the picture, each a branch of its own, see `regions`
    """

    left_out: ClassVar[frozenset[str]] = frozenset(
        {"guidance_rescale", "pictures_kept", "border_edited", "regions", "guidance_embedded"}
    )

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = Field(7.5, ge=0, le=100)
    guidance_start: float = Field(0.0, ge=0, le=1)
    guidance_stop: float = Field(1.0, ge=0, le=1)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    feature_reuse: int = Field(1, ge=1, le=10)
    editor: editors.EditorChoice
    attended_keyframes: int = Field(8, ge=1, le=4096)  # beyond so many, see `keyframe_groups`
    solver: Solver = "ddim"
    pictures_kept: bool = False
    border_edited: bool = False
    guidance_embedded: bool = False
    regions: tuple[str, ...] = Field((), max_length=MOST_REGIONS)

    @model_validator(mode="after")
    def _in_order(self) -> EditSpec:
        if self.guidance_start > self.guidance_stop:
            raise ValueError("guidance_start is after guidance_stop")
        return self

    def guided_at(self, step: int, steps: int) -> bool:
        """Whether there is guidance at `step` of `steps`."""
        inside = round(self.guidance_start * steps) <= step < round(self.guidance_stop * steps)
        return inside and self.guidance_scale != 1

    def branches_at(self, step: int, steps: int) -> int:
        """Branches of the UNet at `step` of `steps`: one per prompt, and the unconditional one where it is guided."""
        return 1 + len(self.regions) + (self.guided_at(step, steps) and not self.guidance_embedded)


@dataclass(frozen=True)
class SourceRead:
    """What a stretch needs of the source, on the CPU: layer → tokens or indices, and the injected features."""

    source: dict[str, Tensor]
    keyframe_feature: Tensor | None
    index: dict[str, Tensor]
    feature: Tensor | None


class Denoiser:
    """The edit under way: knows the source's artifacts, and predicts noise for keyframes and for other frames.

    frames    of the clip, ascending: those that are denoised
    latents   of invert_frames        tokens   of extract_tokens (its feature only)        field   of match_tokens
    mask      of read_masks or find_masks: outside of it the source's latents are put back at every step
    regions   the same, per prompt in `spec.regions`: where it rules
    editing_keyframes   entered for every joint pass
    controls            control images of each ControlNet: rgb of control_frames
    border              frames at the ends of windows that are passed on their own, see `passes.apart`
    """

    def __init__(
        self, spec: EditSpec, frames: Sequence[int], *, latents: Arrays, tokens: Arrays, field: Arrays,
        timesteps: tuple[int, ...], backbone: Backbone, mask: Arrays | None = None,
        editing_keyframes: Callable[[], AbstractContextManager[None]] = nullcontext, controls: Sequence[Arrays] = (),
        regions: Sequence[Arrays] = (), border: int = 0,
    ) -> None:  # fmt: skip
        assert len(regions) == len(spec.regions), "every region has a mask and a prompt"
        self.editing_keyframes = editing_keyframes
        self.latents, self.mask, self.border = latents, mask, border
        self.spec, self.frames, self.timesteps, self.backbone = spec, list(frames), timesteps, backbone
        self.tokens, self.field = tokens, field
        # Differs: at guidance 1 the unconditional branch has no weight and is not run; there never is a source branch.
        unconditional = [] if spec.guidance_scale == 1 or spec.guidance_embedded else [spec.negative_prompt]
        prompts = [*unconditional, spec.prompt, *spec.regions]
        text = backbone.encode_text(prompts)
        self.editor = editors.build(
            spec.editor, editors.Source(latents, timesteps, backbone.levels, text, spec.guidance_scale)
        )
        self.support = [int(frame) for frame in field["support"][:]]
        self.keyframes: NDArray[Any] = field["keyframes"][:]
        self.neighbours: NDArray[Any] = field["neighbour"][:]
        self.weights: NDArray[Any] = field["weights"][:]
        self.whole = self._whole_steps()
        self.reuse = Reuse(backbone.unet, backbone.layers, frames)
        self.controlling = Controlling(backbone, controls, frames)
        size = latents["latents"].shape[-2:]
        self.regions = [Region(mask["mask"], {*self.frames, *self.support}, *size) for mask in regions]
        self._reads = self._reading(self.steps)

    @property
    def steps(self) -> range:
        """Positions in `timesteps` that this edit visits, in order."""
        return range(self.editor.first_step, len(self.timesteps))

    def trajectory(
        self, stage: str, keyframe_latents: Array | None = None, *, followed: Sequence[int] = (),
        scratch: Scratch = NOTHING_KEPT, kept_as: str = "at_once",
    ) -> Iterator[Moment]:  # fmt: skip
        """Where the edit stands at the start of every step of `timesteps`, and at its end.

        Before the edit's first step it stands where it starts. What `scratch` holds of a run that was stopped is taken
        from there: no such step is done again, but those after the newest whole one where features are reused.

        stage              whose name an error bears
        keyframe_latents   (timestep, support, c, h, w): where the keyframes are known, and not among `frames`
        followed           frames, of `frames`, whose latents are wanted of every step
        kept_as            what tells this trajectory from others in the same scratch
        raises             NonFiniteLatents, naming the timestep and the first bad frame
        """
        every = list(range(len(self.frames)))
        now = self.backbone.to_device(self.editor.first_latents(self.frames).numpy())
        now = self._kept(self.steps.start, every, now)
        wanted = [self.frames.index(frame) for frame in followed]
        for step in range(self.steps.start):
            yield Moment(step, now[wanted], now)
        sampling = Sampling(self.backbone.levels, self.spec.solver)
        passed = PassedSteps(scratch, kept_as)
        first, now = self._gone_on(passed, now, len(wanted), sampling)
        for step in range(self.steps.start, first):
            known = passed.followed(step, (len(wanted), *now.shape[1:]))
            assert known is not None, f"what was kept of step {step} is gone"
            yield Moment(step, self.backbone.to_device(known), None)
        self._reads = self._reading(range(first, len(self.timesteps)))
        while first < len(self.timesteps):
            moment = Moment(first, now[wanted], now)
            self._keep(passed, moment, sampling)
            yield moment
            steps = self._with_those_that_reuse(first)
            keyframes = self._keyframes_of(first, now, keyframe_latents)
            now, between, sound = self._after(steps, now, keyframes, sampling, wanted)
            for row, step in enumerate(steps):
                self._finite(passed, sound[row], stage, step)
            for step, latents in zip(steps[1:], between, strict=True):
                moment = Moment(step, latents, None)
                self._keep(passed, moment, sampling)
                yield moment
            first = steps.stop
        moment = Moment(len(self.timesteps), now[wanted], now)
        self._keep(passed, moment, sampling)
        yield moment

    def _after(
        self, steps: range, now: Tensor, keyframe_latents: Tensor, sampling: Sampling, followed: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take `frames` through a step at which the whole UNet is executed, and those after it that reuse features.

        A pass of frames goes through all of these steps once the whole UNet has been over each of them: features are
        kept of those alone that wait for others of their pass.

        now        latents (frame, c, h, w) of `frames` at the first of the steps
        followed   rows of them
        returns    latents after the last of `steps` (frame, c, h, w); at the start of each but the first, of the
                   followed (step, row, c, h, w); whether all is finite after each (step, frame) bool
        """
        after, guesses = torch.empty_like(now), torch.empty_like(now) if self.spec.solver != "ddim" else None
        between = now.new_empty(len(steps) - 1, len(followed), *now.shape[1:])
        sound = torch.empty(len(steps), len(now), dtype=torch.bool, device=now.device)
        place = {row: number for number, row in enumerate(followed)}
        waiting = Waiting(self._passes() if len(steps) > 1 else [list(range(len(now)))])
        for come, noise in self.noise(steps.start, now, keyframe_latents):
            after[come] = noise
            for own in waiting.come(come):
                alone, kept = sampling.of(own), [row for row, each in enumerate(own) if each in place]
                for number, latents in enumerate(self._each_step(steps, own, now[own], after[own], alone)):
                    sound[number, own] = finite_frames(latents)
                    if number < len(between):
                        between[number, [place[own[row]] for row in kept]] = latents[kept]
                after[own] = latents
                if guesses is not None:
                    assert alone.before is not None, "every step has guessed"
                    guesses[own] = alone.before[0]
        if guesses is not None:
            sampling.before = guesses, self.timesteps[steps[-1]]
        return after, between, sound

    def _each_step(
        self, steps: range, own: list[int], latents: Tensor, noise: Tensor, sampling: Sampling
    ) -> Iterator[Tensor]:
        """Latents (row, c, h, w) of rows of `frames` after each of `steps`; `noise` is that of the first."""
        frames = [self.frames[row] for row in own]
        for step in steps:
            if step > steps.start:
                noise = self.reusing(step, frames, latents)
            latents = self._stepped(step, own, latents, noise, sampling)
            yield latents
        if len(steps) > 1:
            self.reuse.forget(frames)
            self.controlling.forget(frames)

    def _stepped(self, step: int, own: list[int], latents: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
        """Latents (row, c, h, w) of rows of `frames` at the end of `step`."""
        frames = [self.frames[row] for row in own]
        following = self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None
        if self.editor.injection(step).noise:
            mean = self.backbone.levels.ddpm_mean(latents, noise, self.timesteps[step], following)
            latents = mean + self.backbone.to_device(rows(self.latents["noise"], step, frames))
        else:
            latents = sampling.step(latents, noise, self.timesteps[step], following)
        return self._kept(step + 1, own, latents)

    def _kept(self, step: int, own: list[int], edited: Tensor) -> Tensor:
        """Latents (row, c, h, w) of rows of `frames` as `step`, or the end, begins; outside the mask the source's."""
        if self.mask is None:
            return edited
        frames = [self.frames[row] for row in own]
        if step == len(self.timesteps):
            source = frames_of(self.latents["clean_latents"], frames)
        else:
            source = rows(self.latents["latents"], step, frames)
        return put_back(edited, self.backbone.to_device(source).float(), self._share[own].to(edited.device))

    @cached_property
    def _share(self) -> Tensor:
        """How much of each latent pixel of `frames` is edited (frame, 1, height, width)."""
        assert self.mask is not None, "there is a mask"
        size = self.latents["latents"].shape[-2:]
        some = [self.frames[block.start : block.stop] for block in blocks_of(len(self.frames))]
        share = edited_in_latents if self.spec.border_edited else in_latents
        return torch.cat([share(frames_of(self.mask["mask"], frames), *size) for frames in some])

    def _keyframes_of(self, step: int, now: Tensor, known: Array | None) -> Tensor:
        """Latents (keyframe, c, h, w) of the step's keyframes: among `now`, or `known` (timestep, support, c, h, w)."""
        among = self.frames if known is None else self.support
        rows = [among.index(int(frame)) for frame in self.keyframes[step]]
        return now[rows] if known is None else self.backbone.to_device(known[step][rows])

    def _gone_on(self, passed: PassedSteps, start: Tensor, followed: int, sampling: Sampling) -> tuple[int, Tensor]:
        """The step to go on from, and latents (frame, c, h, w) there: the edit's first step where nothing is kept.

        start      latents at the edit's first step     followed   number of frames that are followed
        sampling   is told what it guessed last
        """
        shape = (1 if self.spec.solver == "ddim" else 2, *start.shape)
        found = passed.newest(self._resumable(), shape, self.steps.start, (followed, *start.shape[1:]))
        if found is None:
            return self.steps.start, start
        step, (latents, *guess) = found[0], self.backbone.to_device(found[1])
        if guess:
            sampling.before = guess[0], self.timesteps[step - 1]
        return step, latents

    def _resumable(self) -> list[int]:
        """Steps that can be gone on from, and the end: a whole pass finds anew all that later ones reuse."""
        return [*(step for step in self.steps[1:] if self.whole[step]), len(self.timesteps)]

    def _keep(self, passed: PassedSteps, moment: Moment, sampling: Sampling) -> None:
        """Keep what a run that is stopped from here on needs to go on here."""
        if moment.step < len(self.timesteps):
            passed.keep_followed(moment.step, moment.followed)
        if moment.step in self._resumable():
            guess = [sampling.before[0]] if sampling.before else []
            passed.keep_state(moment.step, torch.stack([moment.edited, *guess]))

    def _finite(self, passed: PassedSteps, sound: Tensor, stage: str, step: int) -> None:
        """Raise NonFiniteLatents where latents are not (frame); then nothing that led there is gone on from."""
        try:
            all_finite(sound, stage, self.timesteps[step], self.frames)
        except NonFiniteLatents:
            passed.forget_states()
            raise

    def noise(self, step: int, latents: Tensor, keyframe_latents: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Noise at a step where the whole UNet is executed, as it becomes known: rows of `frames`, and (row, c, h, w).

        Such steps are asked for in order, each once.

        latents            of `frames` (frame, c, h, w)
        keyframe_latents   of this step's keyframes (keyframe, c, h, w)
        """
        drawn = [int(frame) for frame in self.keyframes[step]]
        place = {frame: row for row, frame in enumerate(self.frames)}
        anchors: dict[str, Keys] = {}
        held: Held = ([], {})
        stretches = self.stretches(step)
        for stretch in stretches:
            expected, read = next(self._reads)
            assert expected == stretch, "steps are denoised in order"
            own = [drawn[position] for position in stretch.keyframes]
            with self.editing_keyframes():
                joint, processors = self.joint(stretch, own, keyframe_latents[stretch.keyframes], read, anchors)
            held = _together(held, (stretch.keyframes, {name: p.taken() for name, p in processors.items()}))
            if stretch.anchors:
                anchors = {name: cast(Keys, processor.keys) for name, processor in processors.items()}
            del processors
            known = [row for row, frame in enumerate(own) if frame in place]
            yield [place[own[row]] for row in known], joint[known]
            if len(stretches) > 1:
                give_back_holes()
            for frames, noise in self.propagated(stretch, latents, held, read):
                yield [place[frame] for frame in frames], noise
            held = _chosen(held, stretch.kept)
            if len(stretches) > 1:
                give_back_holes()

    def reusing(self, step: int, frames: list[int], latents: Tensor) -> Tensor:
        """Noise (frame, c, h, w) of some of `frames` at a step where what the last whole pass found is used again."""
        noise = torch.empty_like(latents)

        def do(some: slice) -> None:
            noise[some] = self._predict(step, frames[some], latents[some], {}, None)

        self.backbone.each_pass(len(frames), do)
        return noise

    def joint(
        self, stretch: Stretch, keyframes: list[int], latents: Tensor, read: SourceRead, anchors: dict[str, Keys]
    ) -> tuple[Tensor, dict[str, ExtendedAttention]]:
        """Noise (keyframe, c, h, w) of a stretch's keyframes, edited jointly, and the processors that hold T_base.

        keyframes   their frames in the clip
        anchors     layer → keys and values of the anchors; none: there are no anchors, or these are they
        """
        step, dtype = stretch.step, self._text(stretch.step).dtype
        processors = {
            name: ExtendedAttention(
                self.branches(step), stretch.blocks, anchors=anchors.get(name), keep_keys=stretch.anchors
            )
            for name in self.backbone.layers
        }
        for name, source in read.source.items():
            processors[name].source = self._on_device(source).to(dtype)
        try:
            return self._predict(step, keyframes, latents, processors, read.keyframe_feature), processors
        except torch.OutOfMemoryError:
            raise InputError(
                f"the GPU's memory does not hold {len(keyframes)} keyframes that are edited jointly; choose fewer with "
                "--attended-keyframes, a longer --keyframe-interval or a smaller --size"
            ) from None

    def propagated(
        self, stretch: Stretch, latents: Tensor, held: Held, read: SourceRead
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The stretch's frames, which follow keyframes, and their noise (frame, c, h, w): no self-attention is run.

        latents   of `frames` (frame, c, h, w)
        held      T_base at all the positions that the frames gather from
        """
        positions, base_tokens = held
        step = stretch.step
        row = np.zeros(self.keyframes.shape[1], np.int64)
        row[positions] = range(len(positions))
        place = {frame: row for row, frame in enumerate(self.frames)}
        neighbour = torch.from_numpy(row[self.neighbours[step][stretch.frames]])
        weight = torch.from_numpy(self.weights[step][stretch.frames])

        def of(some: slice) -> Tensor:
            weights = self._on_device(weight[some])
            processors = {}
            for name, base in base_tokens.items():
                found = self._on_device(gathered_rows(neighbour[some], read.index[name][some].to(torch.int64)))
                processors[name] = self.gathering(stretch, stretch.frames[some], name, base, found, weights)
            feature = None if read.feature is None else read.feature[some]
            own = latents[[place[frame] for frame in stretch.frames[some]]]
            return self._predict(step, stretch.frames[some], own, processors, feature)

        for first, last in spans(stretch.groups):
            for once in self._slices(last - first):
                frames = stretch.frames[first + once.start : first + once.stop]
                noise = latents.new_empty(len(frames), *latents.shape[1:])

                def do(some: slice, noise: Tensor = noise, start: int = first + once.start) -> None:
                    noise[some] = of(slice(start + some.start, start + some.stop))

                self.backbone.each_pass(len(frames), do)
                yield frames, noise

    def gathering(
        self, stretch: Stretch, frames: Sequence[int], layer: str, base_tokens: Tensor, rows: Tensor, weight: Tensor
    ) -> PropagatedAttention:
        """What stands in for a layer's self-attention: `rows` (side, frame · token), `weight` (frame, side)."""
        return PropagatedAttention(base_tokens, rows, weight)

    def stretches(self, step: int) -> list[Stretch]:
        """The step in pieces that bound memory: each joint pass, followed by the frames that it makes known."""
        return stretches(
            step, self.frames, keyframes=self.keyframes[step], neighbours=self.neighbours[step],
            support=set(self.support), limit=self.spec.attended_keyframes, border=self.border,
        )  # fmt: skip

    def branches(self, step: int) -> int:
        """Branches that are run at `step`: unconditional where there is guidance, conditional, one per region."""
        return len(self._text(step))

    def _slices(self, frames: int) -> list[slice]:
        """The passes that so many frames are put into, while memory holds them."""
        found: list[slice] = []
        self.backbone.each_pass(frames, found.append)
        return found

    def _passes(self) -> list[list[int]]:
        """Rows of `frames` in the passes of a step that reuses features."""
        place = {frame: row for row, frame in enumerate(self.frames)}
        groups = apart(self.frames, set(self.support), self.border)
        return [[place[frame] for frame in group[some]] for group in groups for some in self._slices(len(group))]

    def _with_those_that_reuse(self, step: int) -> range:
        """A step at which the whole UNet is executed, and those after it that use again what it finds."""
        whole = (later for later in self.steps if later > step and self.whole[later])
        return range(step, next(whole, len(self.timesteps)))

    def _whole_steps(self) -> list[bool]:
        """Per step whether the whole UNet is executed.

        Its turn has come, a branch comes in, a ControlNet's strength or the scale that the UNet is told is another.
        """
        whole = [True] * len(self.timesteps)
        since = self.steps.start
        for before, step in pairwise(self.steps):
            due = step - since >= self.spec.feature_reuse or self.branches(step) > self.branches(before)
            told = [(self.editor.conditions(each).control_strengths, self._told(each)) for each in (before, step)]
            whole[step] = due or told[0] != told[1]
            since = step if whole[step] else since
        return whole

    def _conditions(self, step: int) -> editors.Conditions:
        given = self.editor.conditions(step)
        branches = self.spec.branches_at(step, len(self.timesteps))
        if len(given.text) > branches:
            return replace(given, text=given.text[-branches:], guidance_scale=1.0)
        return given

    def _text(self, step: int) -> Tensor:
        return self._conditions(step).text

    def _predict(
        self, step: int, frames: Sequence[int], latents: Tensor, processors: Any, feature: Tensor | None
    ) -> Tensor:
        """Noise (frame, c, h, w), guidance applied; `feature` (frame, c, h, w) is the injected one."""
        conditions, branches = self._conditions(step), self.branches(step)
        hooks: dict[str, Hook] = {}
        forwards = {}
        keep = self.whole[step] and len(self._with_those_that_reuse(step)) > 1
        if feature is not None and self.backbone.injected_feature is not None:
            repeated = self._on_device(feature).to(conditions.text.dtype).repeat(branches, 1, 1, 1)
            hooks[self.backbone.injected_feature] = lambda module, inputs, output: repeated
        if keep:
            hooks |= self.reuse.keeping(frames, branches)
        elif not self.whole[step]:
            forwards = self.reuse.reusing(frames, branches)
        text = conditions.text.repeat_interleave(len(latents), dim=0)
        batch, timestep = latents.repeat(branches, 1, 1, 1), self.timesteps[step]
        if self.whole[step]:
            strengths = conditions.control_strengths
            residuals = self.controlling.residuals(strengths, frames, batch, timestep, text, keep)
        else:
            residuals = self.controlling.reused(frames, branches)
        with patched(self.backbone.unet, processors, hooks, forwards):
            noise = self.backbone.predict_noise(batch, timestep, text, residuals, **self._told(step))
        parts = noise.unflatten(0, (branches, len(latents)))
        first, *others = parts[-1 - len(self.regions) :]
        wanted = overlaid(
            first, [(noise, region.share(frames)) for noise, region in zip(others, self.regions, strict=True)]
        )
        if branches == 1 + len(self.regions):
            return wanted
        return guided(parts[0], wanted, conditions.guidance_scale, self.spec.guidance_rescale)

    def _told(self, step: int) -> dict[str, float]:
        """The scale that a UNet is told which takes it; 1 where there is no guidance."""
        if not self.spec.guidance_embedded:
            return {}
        return {"guidance_scale": self.spec.guidance_scale if self.spec.guided_at(step, len(self.timesteps)) else 1.0}

    def _reading(self, steps: range) -> Iterator[tuple[Stretch, SourceRead]]:
        """What the stretches of `steps` need of the disk, in order."""
        joint_steps = (step for step in steps if self.whole[step])
        return read_ahead((stretch for step in joint_steps for stretch in self.stretches(step)), self._read)

    def _read(self, stretch: Stretch) -> SourceRead:
        """What a stretch needs of the disk; called from the reading thread."""
        step, injection = stretch.step, self.editor.injection(stretch.step)
        injected = self.backbone.injected_layers if injection.attention else []
        has_feature = injection.feature and "feature" in self.tokens
        drawn = [int(self.keyframes[step][position]) for position in stretch.keyframes]
        return SourceRead(
            {name: _read_rows(self.field[f"source.{name}"], step, stretch.keyframes) for name in injected},
            _read_rows(self.tokens["feature"], step, drawn) if has_feature else None,
            {
                name: _read_rows(self.field[f"index.{name}"], step, stretch.frames)
                for name in (self.backbone.layers if stretch.frames else ())
            },
            _read_rows(self.tokens["feature"], step, stretch.frames) if has_feature and stretch.frames else None,
        )

    def _on_device(self, values: Tensor) -> Tensor:
        return self.backbone.to_device(values.numpy())


def latents_block(moment: Moment, timesteps: tuple[int, ...]) -> Block:
    """One yield of `trajectory` that follows the support, as the artifact of edit_keyframes holds it."""
    latents = moment.followed.cpu().numpy()
    if moment.step == len(timesteps):
        return Block("clean_latents", (0, 0, 0, 0), latents)
    return Block("latents", (moment.step, 0, 0, 0, 0), latents[None])


def keyframe_pictures(
    support: Sequence[int], edited: Tensor, decode: Decoding,
    editing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Block]:  # fmt: skip
    """The support's pictures as the artifact of edit_keyframes holds them, decoded when they are asked for.

    edited    latents (frame, c, h, w) of the support
    editing   entered while they are decoded
    """
    for block in blocks_of(len(edited)):
        with editing():
            rgb = decode(support[block.start : block.stop], edited[block.start : block.stop])
        yield Block("rgb", (block.start, 0, 0, 0), rgb)


def _read_rows(array: Array, step: int, chosen: Sequence[int]) -> Tensor:
    return torch.from_numpy(rows(array, step, chosen))


def _together(one: Held, other: Held) -> Held:
    """T_base at the positions of both; layer by layer, so that no more than one is there twice."""
    if not one[0]:
        return other
    return [*one[0], *other[0]], {name: torch.cat([one[1].pop(name), other[1].pop(name)], 1) for name in [*other[1]]}


def _chosen(held: Held, wanted: list[int]) -> Held:
    """T_base at the positions `wanted`, in their order; layer by layer."""
    positions, base = held
    if positions == wanted:
        return held
    chosen = [positions.index(position) for position in wanted]
    return wanted, {name: base.pop(name)[:, chosen] for name in [*base]}

"""Every key of a run, known before anything runs: what is there, what would be computed, and why.

Keys depend on the configuration and on the bytes of the video and the model, never on a result, so a plan needs no
model in memory. Shapes do depend on the decoded clip: until it is there, its frame count is the container's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ImageColor
from pydantic import JsonValue

from stages import (
    control_frames,
    decode_frames,
    edit_keyframes,
    editors,
    extract_tokens,
    find_masks,
    invert_ddpm,
    invert_frames,
    match_tokens,
    propagate_tokens,
    read_masks,
    segment_masks,
)
from stages.backbones.decoders import VERSION as DECODING
from stages.backbones.layout import ModelLayout
from stages.diffusion.chunks import FRAMES_PER_BLOCK
from stages.diffusion.ddim import inversion_timesteps, timesteps
from stages.diffusion.keyframes import adaptive_starts
from stages.editing.resuming import STATES_KEPT
from stages.media.encoding import Encoding
from stages.media.letterbox import Bars, parse_bars
from stages.media.picture_folders import pictures_in, size_of
from stages.media.video import OVER_BLACK, VPX, Colour, choose_size, parse_frames, step_for, survey
from store.artifact import Artifact
from store.errors import InputError
from store.keys import ArtifactKey
from store.layout import human_bytes
from store.schemas import Frozen, Schema, Variable
from store.store import Store

from .config import EditConfig, RuntimeConfig
from .controls import Control, find_annotator, find_control
from .decoders import find_decoder
from .masks import mask_key, mask_recipe
from .models import ModelFiles, adapters_of, find_model, geometry_of, layout_of
from .region_masks import RegionPlan, region_keys
from .shots import SeenClip, parse_cuts, written_cuts
from .videos import KnownVideo

STAGES: Mapping[str, Any] = {
    "decode_frames": decode_frames,
    "invert_frames": invert_frames,
    "extract_tokens": extract_tokens,
    "match_tokens": match_tokens,
    "edit_keyframes": edit_keyframes,
    "propagate_tokens": propagate_tokens,
}
STAGES_BESIDE: Mapping[str, Any] = {
    "control_frames": control_frames,
    "invert_ddpm": invert_ddpm,
    "read_masks": read_masks,
    "find_masks": find_masks,
    "segment_masks": segment_masks,
}
"""Stages that not every run has."""
BLACK = (0, 0, 0)
WHOLE_AREA = 1920 * 1088  # pixels; above it the autoencoder works in tiles
GUIDANCE_SCALE = 7.5  # as in the paper, where neither the user nor the model says otherwise


@dataclass(frozen=True)
class Node:
    """One artifact of the plan: its key, the Spec behind it, and for the last two stages the prompt it serves."""

    stage: str
    spec: Any
    key: ArtifactKey
    prompt: str | None = None


class Plan:
    """The six stages of one run, the last two once per prompt; without prompts the four that know none.

    video   what is known of it, where its file is not here: then its frames must be in the store
    """

    def __init__(
        self, config: EditConfig, runtime: RuntimeConfig, store: Store, video: KnownVideo | None = None
    ) -> None:
        self.notes: list[str] = []
        self.config, self.runtime, self.store = self._scheduled(config), runtime, store
        config = self.config
        self._found: dict[str, Artifact] = {}
        known = video or KnownVideo.of(config.video, store)
        self.video, self.video_key = known.info, known.key
        self.mask_key = known.mask_key or mask_key(config, store)
        self.given = known.given
        self.model: ModelFiles = find_model(config.model, store, runtime.allow_pickle, adapters_of(config))
        self.decoder = find_decoder(config.decoder, self.model, store) if config.decoder else None
        if config.mask_feather is not None and not (config.mask or config.mask_from or config.regions):
            self.notes.append("--mask-feather shows nowhere: there is no --mask, --mask-from or --region")
        if self.decoder:
            self.notes.append(
                f"the clip is decoded by the {self.decoder.kind} of --decoder; keyframes on their own, as tf preview "
                "shows them, by the model's own decoder"
            )
        geometry = geometry_of(self.model, store)
        background = self._background()
        bars = self._bars(known.bars if background == BLACK else None)  # they were looked for over black
        shown = (self.video.width, self.video.height) if bars is None else bars.inside
        picture = self.video.model_copy(update={"width": shown[0], "height": shown[1]})
        size = choose_size(picture, geometry.multiple, config.size)
        self.size = (size.width, size.height)
        self.encoding = self._encoding()
        self.notes += [*(note for note in self.video.notes if note != OVER_BLACK or background == BLACK)]
        self.notes += [size.sentence] if size.sentence else []
        if self.model.pickled:
            self.notes.append(
                f"the weights of {config.model} are pickled, and opened because of --allow-pickle: torch is told to "
                "take nothing but numbers from them, but convert them to .safetensors if they come from somebody else"
            )
        native = geometry.native_size
        if size.width * size.height > 2 * native * native:
            self.notes.append(
                f"the model was trained on {native}×{native} frames, and {size.width}×{size.height} is "
                f"{size.width * size.height / native**2:.1f} times that area: slower, and the edit may suffer; "
                "choose a smaller --size"
            )
        if 4 * size.width * size.height < native * native:
            self.notes.append(
                f"the model was trained on {native}×{native} frames, and {size.width}×{size.height} is less than a "
                "quarter of that area: the edit may suffer; choose a larger --size"
            )
        traced = layout_of(self.model, size.width, size.height, store)
        spaced = traced.schedule.spaced(config.timestep_spacing)
        self.layout: ModelLayout = traced.model_copy(update={"schedule": spaced})
        self.timesteps = timesteps(self.layout.schedule, config.steps)
        self._check_steps()
        advised = self.model.advice.guidance_scale
        self.guidance_scale = next(
            scale for scale in (config.guidance_scale, advised, GUIDANCE_SCALE) if scale is not None
        )
        self._check_guidance()
        start, stop, step = parse_frames(config.frames, self.video.frames) if config.frames else (0, None, 1)
        if config.fps is not None:
            if step != 1:
                raise InputError(
                    f"--fps {config.fps:g} and the STEP of --frames {config.frames} both thin out; say one"
                )
            step = step_for(config.fps, self.video) or 1
        if stop == self.video.declared_frames:
            stop = None  # to the end: the same frames under the same key, said or not
        self.decode = self._node(
            "decode_frames",
            decode_frames.Spec(
                start=start,
                stop=stop,
                step=step,
                width=size.width,
                height=size.height,
                tone_map=self.video.hdr is not None,
                fps=self._thinned_to(),
                bars=bars,
                background=background,
                padding=size.padding,
                vpx_alpha=self.video.has_alpha and self.video.codec in VPX,
            ),
            {"video": self.video_key},
        )
        if self.encoding.source_rate and self.decode.spec.step == 1 and self.decode.spec.fps is None:
            self.notes.append("--source-rate shows nowhere: no frame is left out, as --fps would have it")
        self.taken = self._taken()
        self.invert = self._node(
            "invert_frames",
            invert_frames.Spec(
                prompt=config.source_prompt,
                num_steps=config.steps,
                num_inversion_steps=config.inversion_steps or config.steps,
                evaluations=config.inversion_evaluations,
                solver=config.solver,
                tiled=self._is_tiled(),
                timestep_spacing=config.timestep_spacing,
            ),
            {"frames": self.decode.key.hex, "model": self.model.key},
        )
        self.extract = self._node(
            "extract_tokens",
            extract_tokens.Spec(prompt=config.source_prompt),
            {"latents": self.invert.key.hex, "model": self.model.key},
        )
        cuts = self._cuts()
        self.match = self._node(
            "match_tokens",
            match_tokens.Spec(
                keyframe_interval=config.keyframe_interval,
                keyframe_offsets=min(config.keyframe_offsets, config.keyframe_interval),
                blend=config.blend,
                seed=config.seed,
                cuts=cuts,
                interval_starts=self._interval_starts(cuts),
            ),
            {"tokens": self.extract.key.hex},
        )
        recipe = mask_recipe(self, geometry.multiple // 2)
        self.mask = self._node(*recipe) if recipe else None
        self.regions = RegionPlan(self, known.region_keys or region_keys(config, store), geometry.multiple)
        editor = editors.choose(config.editor, self._editor_settings())
        self.noise = self._noise()
        self.controls = ControlPlan(self)
        self.edits = [self._edit(prompt, editor) for prompt in dict.fromkeys(config.prompts)]

    @property
    def expected_frames(self) -> int:
        """Frames of the clip, as far as is known before they are decoded."""
        return len(self.taken)

    @property
    def clip_size(self) -> tuple[int, int]:
        """(width, height) of the clip: of the edit without padding, and of black bars around it."""
        (width, height), (top, right, bottom, left) = self.decode.spec.shown, self.decode.spec.around
        return width + left + right, height + top + bottom

    @property
    def source(self) -> Path | None:
        """The video's file; None where it is not on this machine, or another one lies in its place."""
        file = self.config.video
        return file if file.is_file() and f"blake3:{self.store.file_hash(file)}" == self.video_key else None

    @property
    def nodes(self) -> list[Node]:
        """All artifacts, in DAG order."""
        beside = [*(node for node in (self.noise, self.mask) if node), *self.regions.nodes]
        prepared = [self.decode, *self.controls.nodes, self.invert, self.extract, self.match, *beside]
        return [*prepared, *(node for pair in self.edits for node in pair)]

    @cached_property
    def keys(self) -> dict[str, ArtifactKey]:
        """Key in hex → key."""
        return {node.key.hex: node.key for node in self.nodes}

    def find(self, node: Node) -> Artifact | None:
        """The committed artifact of a node; one that was found is not looked for again by this plan."""
        if node.key.hex not in self._found and (artifact := self.store.find(node.key)):
            self._found[node.key.hex] = artifact
        return self._found.get(node.key.hex)

    @contextmanager
    def leased(self) -> Iterator[None]:
        """While the block runs nothing of this plan is collected from the store."""
        with self.store.lease(self.keys):
            self.look_again()
            yield

    def look_again(self) -> None:
        """Trust nothing that was found before: it may have been collected since."""
        self._found.clear()

    def schema(self, node: Node) -> Schema:
        """What the node's artifact holds, or will hold: sizes are the decoded clip's where it is there."""
        if node.stage == "decode_frames":
            return decode_frames.outputs(node.spec, video=self.video)
        frames, latents = self._frames, self._latents
        if node.stage == "control_frames":
            return control_frames.outputs(node.spec, frames=frames)
        if node.stage == "invert_frames":
            return latents
        if node is self.noise:
            return invert_ddpm.outputs(node.spec, latents=latents, layout=self.layout)
        if node.stage in ("read_masks", "find_masks", "segment_masks"):
            masks: Schema = STAGES_BESIDE[node.stage].outputs(node.spec, frames=frames)
            return masks
        if node.stage == "extract_tokens":
            return extract_tokens.outputs(node.spec, latents=latents, layout=self.layout, keep_tokens=self.keeps_tokens)
        field = match_tokens.outputs(self.match.spec, latents=latents, layout=self.layout)
        if node.stage == "match_tokens":
            return field
        if node.stage == "edit_keyframes":
            return edit_keyframes.outputs(node.spec, field=field, layout=self.layout)
        return propagate_tokens.outputs(node.spec, frames=frames, layout=self.layout)

    def to_compute(self, *, preview: bool = False) -> list[Node]:
        """What a run (or a preview) would compute, in DAG order: what its results need and the store has not.

        What is neither there nor needed, since it was collected or a preview stops before it, is not computed.
        """
        needed: set[str] = set()

        def need(node: Node) -> None:
            if node.key.hex not in needed and not self.find(node):
                needed.add(node.key.hex)
                for above in self._above(node):
                    need(above)

        wanted = [pair[0 if preview else 1] for pair in self.edits] or [self.invert, self.extract, self.match]
        for node in (self.decode, *wanted):
            need(node)
        return [node for node in self.nodes if node.key.hex in needed]

    def needed_bytes(self, node: Node) -> int:
        """Bytes the node's artifact takes, before compression; 0 where it is there."""
        return 0 if self.find(node) else self.schema(node).nbytes(self.frames)

    def scratch_bytes(self, node: Node) -> int:
        """Bytes that an edit keeps beside its artifact, until that is committed, to go on from where it is stopped."""
        edit = next((pair[0] for pair in self.edits if node in pair), None)
        if edit is None:
            return 0
        latents = "clean_latents" if node is edit else "latents"
        states = (STATES_KEPT + 1) * (1 if edit.spec.solver == "ddim" else 2)
        followed = self.schema(edit).variables["latents"].nbytes()
        return followed + states * self.schema(node).variables[latents].nbytes()

    def missing_bytes(self, nodes: Iterable[Node]) -> int:
        """Bytes that computing `nodes` adds to the disk at most: without what finished parts of drafts hold already."""
        return sum(max(0, self.needed_bytes(node) - self.store.drafted_bytes(node.key)) for node in nodes)

    def summary(self) -> str:
        """One sentence on what the run would do about tokens, and on the whole."""
        missing = self.to_compute()
        if not missing:
            return "all that is needed is there; nothing would be computed"
        kept = (
            "tokens are kept"
            if self.keeps_tokens
            else "tokens do not fit --token-budget: matched as they come, not kept"
        )
        return f"{len(missing)} of {len(self.nodes)} artifacts to compute over {self.frames} frames; {kept}"

    def room(self, free: int) -> str:
        """One sentence on the disk: what a run needs of the `free` bytes at the store."""
        needed = self.missing_bytes(self.to_compute())
        enough = "" if needed <= free else "; that is not enough: free some space, or choose another place with --store"
        return f"up to {human_bytes(needed)} are needed in {self.store.root}, where {human_bytes(free)} is free{enough}"

    @property
    def frames(self) -> int:
        """Frames of the clip: as decoded, or what the container says."""
        size = self._frames.size("frame")
        assert size is not None
        return size

    @property
    def keeps_tokens(self) -> bool:
        """Whether all tokens are kept, or fit the token budget; otherwise extraction and matching run fused."""
        found = self.find(self.extract)
        if found:
            return bool(found.attrs["tokens_kept"])
        kept = extract_tokens.outputs(self.extract.spec, latents=self._latents, layout=self.layout, keep_tokens=True)
        return kept.nbytes() <= self.runtime.token_budget

    @property
    def device(self) -> str:
        """Where models run: "cuda" or "cpu"."""
        if self.runtime.device != "auto":
            return self.runtime.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def provenance(self) -> dict[str, Any]:
        """What a record should say about how it was computed, beside versions."""
        asked = self.runtime
        return {
            "device": self.device, "frames_per_pass": asked.frames_per_pass, "precision": asked.precision,
            "model": self.model.name,
        }  # fmt: skip

    def units(self, node: Node) -> int:
        """Units of work of a node, for progress: UNet passes of one frame and branch, or blocks."""
        frames, steps = self.frames, len(self.timesteps)
        if node.stage == "find_masks":
            trained = self.layout.schedule.num_train_timesteps
            return frames * sum(len(steps) for steps in find_masks.steps_read(self.timesteps, trained))
        if node.stage == "decode_frames":
            return -(-frames // decode_frames.frames_per_block(node.spec)) + 2
        if node.stage == "invert_frames":
            checked = len(invert_frames.checked_frames(frames))
            return frames * int(node.spec.num_inversion_steps) * int(node.spec.evaluations) + checked * steps
        if node.stage in ("control_frames", "read_masks", "segment_masks"):
            return -(-frames // FRAMES_PER_BLOCK)
        if node.stage in ("extract_tokens", "match_tokens", "invert_ddpm"):
            return frames * steps
        support = len(self.schema(self.match).coordinates["support"])
        edit = self._keyframes_of(node)
        if node.stage == "propagate_tokens" and self.find(edit):
            return self._units_continued(node, [range(frames)])
        passes = sum(edit.spec.branches_at(step, steps) for step in range(steps))
        return passes * (support if node is edit else frames)  # the keyframes are made along

    def units_of(self, node: Node, parts: list[range]) -> int:
        """Units of work of some parts of a node, or of pieces that are several parts each."""
        if node.stage == "propagate_tokens":
            return self._units_continued(node, parts) if self.find(self._keyframes_of(node)) else self.units(node)
        return self.units(node) * len(parts) // len(self.schema(node).divided())

    def _units_continued(self, node: Node, pieces: list[range]) -> int:
        spec, matched, steps = self._keyframes_of(node).spec, self.match.spec, len(self.timesteps)
        border = self.decoder.border if self.decoder else 0
        drawn = match_tokens.drawn_keyframes(matched, self.frames, steps)
        support = self.schema(self.match).coordinates["support"]
        each = [
            propagate_tokens.frames_passed(
                piece, self.frames, drawn, support, spec.attended_keyframes, matched.cuts, border
            )
            for piece in pieces
        ]
        passed = [sum(rows) for rows in zip(*each, strict=True)]
        return sum(rows * spec.branches_at(step, steps) for step, rows in enumerate(passed))

    def _keyframes_of(self, node: Node) -> Node:
        """The keyframe edit of the prompt that an edit's node serves."""
        return next(pair[0] for pair in self.edits if node in pair)

    @property
    def _frames(self) -> Schema:
        found = self.find(self.decode)
        if found:
            return found.schema
        promised = decode_frames.outputs(self.decode.spec, video=self.video)
        return promised.model_copy(
            update={"variables": {n: _sized(v, self.expected_frames) for n, v in promised.variables.items()}}
        )

    @property
    def _latents(self) -> Schema:
        return invert_frames.outputs(self.invert.spec, frames=self._frames, layout=self.layout)

    def _above(self, node: Node) -> list[Node]:
        """The artifacts that computing a node reads, or writes along with its own."""
        source = [*self.controls.nodes, self.invert, self.extract, self.match]
        if node.stage == "decode_frames":
            return []
        if node.stage in ("invert_frames", "control_frames"):
            return [self.decode]
        if node.stage == "extract_tokens":
            return [self.invert]
        if node.stage == "match_tokens":
            return [self.extract] if self.keeps_tokens else [self.invert, self.extract]
        if node.stage in ("read_masks", "segment_masks"):
            return [self.decode]
        if node.stage == "find_masks":
            return [self.decode, self.invert]
        if node.stage == "invert_ddpm":
            return [self.invert]
        source += [*(node for node in (self.noise, self.mask) if node), *self.regions.nodes]
        if node.stage == "edit_keyframes":
            return source
        frames = [self.decode] if node.spec.match_colours else []
        return [*frames, *source, next(keyframes for keyframes, edit in self.edits if edit is node)]

    def _bars(self, found: Bars | None) -> Bars | None:
        """Black bars that are cut off, which is said."""
        asked = self.config.letterbox
        if asked == "keep" or (asked == "auto" and found is None):
            return None
        bars = found if asked == "auto" else parse_bars(asked, self.video)
        assert bars is not None
        if bars.inside == (self.video.width, self.video.height):
            return None
        why = "found; --letterbox keep edits them along" if asked == "auto" else "as asked"
        self.notes.append(
            f"black bars are cut off for the edit and put back on the clip: {bars.words()} pixels at top, right, "
            f"bottom, left ({why})"
        )
        return bars

    def _background(self) -> Colour:
        """What is laid under transparent parts; black where there are none."""
        asked = self.config.background_colour
        try:
            red, green, blue = ImageColor.getrgb(asked)[:3]
        except ValueError:
            raise InputError(
                f"--background-colour {asked!r} is no colour; say a name such as white, or #RRGGBB such as #20a040"
            ) from None
        if (red, green, blue) == BLACK or self.video.has_alpha:
            return red, green, blue
        self.notes.append(f"--background-colour {asked} shows nowhere: this video has no transparency")
        return BLACK

    def _encoding(self) -> Encoding:
        """What clips are written as; transparency is kept where there is some."""
        asked = self.runtime.encoding
        if not asked.keep_alpha or self.video.has_alpha:
            return asked
        self.notes.append("--keep-alpha shows nowhere: this video has no transparency")
        return asked.model_copy(update={"keep_alpha": False})

    def _is_tiled(self) -> bool:
        asked = self.config.vae_tiling
        tiled = asked == "on" or (asked == "auto" and self.size[0] * self.size[1] > WHOLE_AREA)
        if tiled and asked == "auto":
            self.notes.append(
                f"frames of {self.size[0]}×{self.size[1]} are encoded and decoded in tiles, for less memory; "
                "--vae-tiling off does not"
            )
        return tiled

    def _thinned_to(self) -> str | None:
        """The rate as a fraction, where no step gives it."""
        asked = self.config.fps
        if asked is None or step_for(asked, self.video) is not None:
            return None
        return str(Fraction(str(asked)))

    def _taken(self) -> Sequence[int]:
        """Positions in the video of the clip's frames."""
        spec = self.decode.spec
        if spec.fps is None or not self.video.variable:
            return decode_frames.taken(spec, self.video)

        def look() -> JsonValue:
            if self.source is None:
                raise InputError(
                    f"{self.config.video} is not here, and --fps {self.config.fps:g} needs the times of its frames; "
                    "copy it here, or leave --fps out"
                )
            return [*decode_frames.taken(spec, self.video, survey(self.source).times)]

        found: Any = self.store.remembered(f"taken 1 {self.decode.key.hex}", look)
        return list(found)

    def _cuts(self) -> tuple[int, ...]:
        """The frames of the clip at which a new shot begins, as they were asked for; what was found is said."""
        asked = self.config.cuts
        if asked == "none":
            return ()
        if asked != "auto":
            return parse_cuts(asked, self.taken)
        cuts = self._seen().cuts()
        if cuts:
            self.notes.append(
                f"{len(cuts) + 1} shots: new ones begin at {written_cuts(cuts, self.taken)}; if not so, say --cuts "
                "none, or at which frames"
            )
        return cuts

    def _seen(self) -> SeenClip:
        return SeenClip(self.decode.spec, self.decode.key, self.source, self.store, self.expected_frames)

    def _interval_starts(self, cuts: tuple[int, ...]) -> tuple[int, ...]:
        """Where keyframe intervals begin, if it is not every so many frames."""
        if self.config.keyframe_placement == "interval":
            return ()
        motion = self._seen().motion()
        return tuple(adaptive_starts(motion, cuts, self.config.keyframe_interval))

    def _edit(self, prompt: str, editor: editors.EditorChoice) -> tuple[Node, Node]:
        config = self.config
        keyframes = self._node(
            "edit_keyframes",
            edit_keyframes.Spec(
                prompt=prompt,
                negative_prompt=config.negative_prompt,
                guidance_scale=self.guidance_scale,
                guidance_start=config.guidance_start,
                guidance_stop=config.guidance_stop,
                guidance_rescale=config.guidance_rescale,
                feature_reuse=config.feature_reuse,
                solver=config.solver,
                editor=editor,
                attended_keyframes=config.attended_keyframes,
                pictures_kept=self.mask is not None,
                border_edited=self.mask is not None,
                guidance_embedded=self.layout.embeds_guidance,
                regions=self.regions.prompts,
            ),
            {
                "latents": (self.noise or self.invert).key.hex,
                "tokens": self.extract.key.hex,
                "field": self.match.key.hex,
                "model": self.model.key,
                **self.controls.inputs,
                **({"mask": self.mask.key.hex} if self.mask else {}),
                **self.regions.inputs,
            },
            prompt,
        )
        return keyframes, self._node(
            "propagate_tokens",
            propagate_tokens.Spec(
                deflicker=config.deflicker,
                match_colours=config.match_colours,
                decoding=DECODING if self.decoder else 0,
            ),
            {"keyframe_edit": keyframes.key.hex, **({"decoder": self.decoder.key} if self.decoder else {})},
            prompt,
        )

    def _node(self, stage: str, spec: Frozen, inputs: dict[str, str], prompt: str | None = None) -> Node:
        version = {**STAGES, **STAGES_BESIDE}[stage].VERSION
        return Node(stage, spec, ArtifactKey.of(stage, version, spec, inputs), prompt)

    def _noise(self) -> Node | None:
        """The latents that the editor wants in the place of invert_frames' own, where it does."""
        config = self.config
        if editors.inversion(config.editor) is None:
            return None
        if config.solver != "ddim":
            raise InputError(f"--editor {config.editor} takes DDPM steps: leave out --solver {config.solver}")
        spec = invert_ddpm.Spec(prompt=config.source_prompt, num_steps=config.steps, seed=config.seed)
        return self._node("invert_ddpm", spec, {"latents": self.invert.key.hex, "model": self.model.key})

    def _scheduled(self, config: EditConfig) -> EditConfig:
        """The config with what its editor decides itself; an unknown editor is refused later, with its settings."""
        if config.editor not in editors.names():
            return config
        decided = dict(editors.schedule(config.editor))
        asked = {name: getattr(config, name) for name in decided}
        self.notes += [
            f"--{name.replace('_', '-')} {value} shows nowhere: --editor {config.editor} decides it"
            for name, value in asked.items()
            if value not in (decided[name], EditConfig.model_fields[name].default)
        ]
        return config.model_copy(update=decided)

    def _editor_settings(self) -> dict[str, Any]:
        advised = self.model.advice.editors.get(editors.base(self.config.editor), {})
        used = {name: value for name, value in advised.items() if name not in self.config.editor_settings}
        if self.config.guidance_scale is None and self.model.advice.guidance_scale is not None:
            used = {"guidance_scale": self.model.advice.guidance_scale, **used}
        if used:
            self.notes.append("as this model advises: " + ", ".join(f"{name} {value}" for name, value in used.items()))
        settings = advised | self.config.editor_settings
        if self.config.editor in ("sdedit", "controlnet"):
            settings.setdefault("seed", self.config.seed)
        if self.config.editor == "controlnet":
            settings["controls"] = [control.share for control in self.config.controls]
        return settings

    def _check_guidance(self) -> None:
        wanting = {"--negative-prompt": self.config.negative_prompt, "--guidance-rescale": self.config.guidance_rescale}
        asked = [option for option, value in wanting.items() if value]
        if self.layout.embeds_guidance and asked:
            raise InputError(
                f"this model takes the guidance scale itself and has no unconditional branch: leave out {asked[0]}"
            )
        if self.guidance_scale == 1 and asked:
            self.notes += [f"{option} shows nowhere: a guidance scale of 1 is no guidance" for option in asked]

    def _check_steps(self) -> None:
        config, trained = self.config, self.layout.schedule.num_train_timesteps
        if config.steps > trained:
            raise InputError(f"--steps {config.steps} is more than the {trained} timesteps this model was trained on")
        try:
            inversion_timesteps(self.timesteps, config.inversion_steps or config.steps)
        except ValueError as error:
            raise InputError(f"--inversion-steps {config.inversion_steps}: {error}") from None


class ControlPlan:
    """The ControlNets of a run and their control images, each artifact once.

    files   of each ControlNet          shown   the artifact that each is shown, in the same order
    raises  InputError where one cannot be had or does not fit, or --control and --editor do not go together
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, controls = plan, plan.config.controls
        if bool(controls) != (plan.config.editor == "controlnet"):
            raise InputError(
                "--control is of --editor controlnet; say both" if controls
                else "--editor controlnet needs a control; say for example --control canny"
            )  # fmt: skip
        self.files = [find_control(control, plan.model, plan.store, plan.runtime.allow_pickle) for control in controls]
        self.videos: dict[str, Path] = {}  # key in hex → the control video, or folder
        self.annotators: dict[str, str] = {}  # key in hex → folder of the detector's weights
        self.given: list[str] = []  # keys of the control videos
        self.shown = [self._node(control) for control in controls]

    @property
    def nodes(self) -> list[Node]:
        """Each artifact once."""
        return list({node.key.hex: node for node in self.shown}.values())

    @property
    def inputs(self) -> dict[str, str]:
        """What they add to the key of an edit."""
        shown = {f"control_{number}": node.key.hex for number, node in enumerate(self.shown)}
        return shown | {f"controlnet_{number}": files.key for number, files in enumerate(self.files)}

    def _node(self, control: Control) -> Node:
        plan = self.plan
        if control.video is not None:
            node = plan._node(
                "control_frames", control_frames.Spec(detector="given"), {"given": self._decoded(control.video)}
            )
            self.videos[node.key.hex] = control.video
            return node
        spec = control_frames.Spec(detector=control.kind, low=control.low, high=control.high)
        frames = {"frames": plan.decode.key.hex}
        if spec.detector == "canny":
            return plan._node("control_frames", spec, frames)
        control_frames.check_installed(spec.detector)
        weights = find_annotator(spec.detector, plan.store, plan.runtime.allow_pickle)
        node = plan._node("control_frames", spec, {**frames, "annotator": weights.key})
        self.annotators[node.key.hex] = str(weights.folder)
        return node

    def _decoded(self, video: Path) -> str:
        """The key that decoding a control video, or folder, as the video itself is decoded would have."""
        plan, spec = self.plan, self.plan.decode.spec
        if plan.given:  # it is checked where the run is, and not here
            self.given.append(plan.given[len(self.given)])
            return ArtifactKey.of("decode_frames", decode_frames.VERSION, spec, {"video": self.given[-1]}).hex
        if video.is_dir():
            if spec.bars is not None:
                raise InputError(
                    f"--control-video {video} is a folder, and the video's black bars are cut off; give a control "
                    "video, or say --letterbox keep"
                )
            files = pictures_in(video)
            frames, sizes = len(files), {size_of(file, "--control-video") for file in files}
            key = f"blake3:{plan.store.sequence_hash(files)}"
        else:
            known = KnownVideo.of(video, plan.store)
            frames, sizes = known.info.declared_frames, {(known.info.width, known.info.height)}
            key = known.key
        if frames != plan.video.declared_frames:
            raise InputError(
                f"--control-video {video} has {frames} {'pictures' if video.is_dir() else 'frames'} and the video has "
                f"{plan.video.declared_frames}; give one control image per frame"
            )
        wide, high = plan.clip_size
        for width, height in sorted(sizes - {(wide, high)}):
            raise InputError(
                f"--control-video {video} is {width}×{height} and the edit {wide}×{high}; give control images of the "
                "edit's size, or choose it with --size"
            )
        self.given.append(key)
        return ArtifactKey.of("decode_frames", decode_frames.VERSION, spec, {"video": key}).hex


def _sized(variable: Variable, frames: int) -> Variable:
    """A growing variable as if it had grown to `frames`."""
    return variable.model_copy(update={"shape": tuple(frames if s is None else s for s in variable.shape)})

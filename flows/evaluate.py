"""A suite carried out: every clip edited under every setting over the cache, and each edit measured.

Measures that need the true motion, masks or attributes are taken where `pocket.truth` knows the clip; elsewhere motion
is estimated, and what cannot be known stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stages.decode_frames import Spec as DecodeSpec
from stages.measures.optical_flow import Estimator
from store.errors import InputError
from store.store import Store

from .config import RuntimeConfig
from .edit import edit_one
from .export import picture_of
from .measure import Known, edit_row, field_rows
from .plan import Plan
from .prepare import prepare
from .suite import Clip, Setting, Suite, pocket_clips
from .tasks import Progress, Quiet, Session

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shown:
    """Frames of one clip to look at: labelled rows, rgb (frame, height, width, 3) uint8 each."""

    clip: str
    rows: list[tuple[str, np.ndarray[Any, Any]]]


@dataclass
class Evaluation:
    """What a suite gave: rows of the two tables, and pictures of the first clips."""

    suite: Suite
    estimator: str
    rows: list[Row] = field(default_factory=list)
    field_rows: list[Row] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)


PICTURES = 6  # clips whose frames are kept to be shown


class Evaluator:
    """One suite under way: the model is loaded once, whatever the number of clips and settings.

    say      is told each clip, and each artifact that was there once and has to be computed again
    raises   InputError, before anything is computed, where a clip, a setting or a metric's model cannot be used
    """

    def __init__(
        self, suite: Suite, runtime: RuntimeConfig, store: Store, say: Say, progress: Progress | None = None
    ) -> None:
        self.suite, self.runtime, self.store, self.say = suite, runtime, store, say
        self.progress: Progress = progress or Quiet()
        self.backbones: dict[tuple[str, str], Any] = {}
        self.estimator = _estimator(suite)
        self.clip_model = _clip_model(suite)
        self.clips = [*suite.clips, *(pocket_clips(suite.pocket, store.root / "clips") if suite.pocket else ())]
        # Everything that can be wrong with a setting or a clip is found before anything is computed.
        self.plans = {
            (clip.video, setting.name): self._plan(clip, setting) for clip, setting in self._pairs()
        }  # fmt: skip

    def run(self) -> Evaluation:
        """Edit and measure everything; rows come clip by clip, the autoencoder's first."""
        with self.store.lease({key for plan in self.plans.values() for key in plan.keys}):
            for plan in self.plans.values():
                plan.look_again()
            return self._run()

    def _run(self) -> Evaluation:
        done = Evaluation(self.suite, self.estimator.name)
        for number, clip in enumerate(self.clips):
            settings = [setting for each, setting in self._pairs() if each is clip]
            self.say(f"clip {number + 1} of {len(self.clips)}: {clip.name}, {len(settings)} settings")
            work = ClipWork(self, clip, settings)
            done.rows += work.rows()
            done.field_rows += work.field_rows() if self.suite.field else []
            if len(done.pictures) < PICTURES:
                done.pictures += work.pictures
        return done

    def session(self, clip: Clip, setting: Setting) -> Session:
        """A session over the shared model; says aloud what was there once and has to be computed again."""
        plan = self.plans[clip.video, setting.name]
        for node in plan.to_compute():
            if self.store.knows(node.key):
                why = self.store.explain(node.key)
                self.say(f"{clip.name}: {node.stage}/{node.key.hex[:12]} is gone ({why}), and is computed again")
        model = (plan.model.key, plan.device)
        session = Session(plan, progress=self.progress, backbone=lambda: self._backbone(model, plan))
        return session

    def _backbone(self, model: tuple[str, str], plan: Plan) -> Any:
        if model not in self.backbones:
            from .runtime import load_backbone

            self.backbones[model] = load_backbone(plan)
        return self.backbones[model]

    def _pairs(self) -> Iterator[tuple[Clip, Setting]]:
        for number, clip in enumerate(self.clips):
            for setting in self.suite.all_settings():
                if setting.clips is None or number < setting.clips:
                    yield clip, setting

    def _plan(self, clip: Clip, setting: Setting) -> Plan:
        try:
            return Plan(self.suite.config(clip, setting), self.runtime, self.store)
        except InputError as error:
            raise InputError(f"setting {setting.name!r}, clip {clip.name}: {error}") from None


class ClipWork:
    """One clip under all its settings."""

    def __init__(self, evaluator: Evaluator, clip: Clip, settings: Sequence[Setting]) -> None:
        self.evaluator, self.clip, self.settings = evaluator, clip, settings
        self.sessions = {setting.name: evaluator.session(clip, setting) for setting in settings}
        self.prepared = {name: prepare(session) for name, session in self.sessions.items()}
        self.pictures: list[Shown] = []

    def rows(self) -> list[Row]:
        """A row per prompt for the autoencoder alone and for every setting."""
        if not self.clip.prompts:
            return [self._inversion_row(setting) for setting in self.settings]
        found: list[Row] = []
        for prompt in self.clip.prompts:
            known = self.known
            found.append(self._named("autoencoder", prompt) | edit_row(known, known.floor, None))
            shown = [("source", known.source), ("autoencoder alone", known.floor)]
            for setting in self.settings:
                edited = self._edited(setting, prompt)
                row = self._named(setting.name, prompt) | self._inversion(setting)
                found.append(row | edit_row(known, edited, prompt) | self._text(edited, prompt))
                shown.append((f"{prompt} · {setting.name}", edited))
            self.pictures.append(Shown(self.clip.name, shown))
        return found

    def field_rows(self) -> list[Row]:
        """A row per layer and timestep of every different field; where every frame is a keyframe there is none."""
        found: list[Row] = []
        seen: set[tuple[Any, str]] = set()
        for setting in self.settings:
            session = self.sessions[setting.name]
            spec, tokens = session.plan.match.spec, session.plan.extract.key.hex
            matches = (spec.model_copy(update={"blend": "linear"}), tokens)  # the blend matches nothing otherwise
            if matches in seen or spec.keyframe_interval == 1 or not self.clip.prompts:
                continue
            seen.add(matches)
            artifact = self.prepared[setting.name].field()
            rows = field_rows(self.known, artifact, session.plan.layout)
            found += [{"clip": self.clip.name, "setting": setting.name, **row} for row in rows]
        return found

    @cached_property
    def known(self) -> Known:
        """What the measures need to know of the clip: once for all settings."""
        first = self.settings[0].name
        session, prepared = self.sessions[first], self.prepared[first]
        spec = session.plan.decode.spec
        assert isinstance(spec, DecodeSpec)
        source = prepared.frames()["rgb"][:]
        floor = session.backbone.decode(session.backbone.encode(source))
        # One motion for all settings, so that their numbers are of the same pairs: a cut that one knows of is a cut.
        cuts = {cut for each in self.sessions.values() for cut in each.plan.match.spec.cuts}
        return Known.of(self.clip, spec, source, floor, self.evaluator.estimator, tuple(sorted(cuts)))

    def _named(self, setting: str, prompt: str) -> Row:
        return {
            "clip": self.clip.name, "setting": setting, "prompt": prompt, "source_prompt": self.clip.source_prompt,
        }  # fmt: skip

    def _edited(self, setting: Setting, prompt: str) -> np.ndarray[Any, Any]:
        """Pictures of an edit, rgb (frame, height, width, 3) uint8."""
        session = self.sessions[setting.name]
        nodes = next(pair for pair in session.plan.edits if pair[0].prompt == prompt)
        rgb = edit_one(session, self.prepared[setting.name], *nodes)[1]()["rgb"][:]
        return picture_of(rgb, session.plan.decode.spec)

    def _inversion_row(self, setting: Setting) -> Row:
        session = self.sessions[setting.name]
        row = self._named(setting.name, "") | self._inversion(setting)
        return row | {"seconds": session.uses[session.plan.invert.key.hex].artifact.record.seconds}

    def _inversion(self, setting: Setting) -> Row:
        latents = self.prepared[setting.name].latents()
        return {name: float(latents[name][:].mean()) for name in ("inversion_psnr", "reconstruction_psnr")}

    def _text(self, edited: np.ndarray[Any, Any], prompt: str) -> Row:
        model = self.evaluator.clip_model
        if model is None:
            return {}
        return {
            "text_alignment": model.text_alignment(edited, prompt),
            "frame_consistency": model.frame_consistency(edited),
        }


def _estimator(suite: Suite) -> Estimator:
    from stages.measures.optical_flow import choose

    return choose(suite.metrics.flow)


def _clip_model(suite: Suite) -> Any:
    if suite.metrics.clip_model is None:
        return None
    from stages.measures.clip import load_clip

    return load_clip(suite.metrics.clip_model)

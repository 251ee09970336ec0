"""One command from beginning to end: check what can be checked, compute what is missing, write the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.media.export import VERSION, Written
from store.artifact import Artifact
from store.errors import FullPlaceError, InputError, StorePlaceError
from store.layout import human_bytes
from store.store import Store

from .edit import edit, preview
from .engine import Wanted, choose_engine, run_with_prefect
from .export import check_outputs, check_pictures, clip_hash, export_edit, output_files, preview_sheet
from .plan import Plan
from .prepare import prepare_all
from .remarks import remarks
from .runtime import check_device
from .sidecar import Sidecar, check_sidecar_place, written_sidecar
from .tasks import Progress, Quiet, Session, Use

if TYPE_CHECKING:
    import xarray

FlowName = Literal["prepare-video", "preview-video", "edit-video"]
Work = Callable[[Session], list[Artifact]]
Walker = Callable[[Session, Work, FlowName, bool], list[Artifact]]
"""(session, work, name, whether there is something to compute) → what `work` returns: who walks a run."""


@dataclass(frozen=True)
class Result:
    """What a run gave: one output per prompt, what it had of the store, and what the user should hear.

    run    the id under which the store remembers it; none where it did nothing, or the store cannot be written
    """

    outputs: list[dict[str, Any]]
    uses: list[Use]
    notes: list[str]
    seconds: float
    store: str
    run: str | None = None

    def artifact(self, stage: str, prompt: str | None = None) -> Artifact:
        """What a stage made, or was found to have made; of an edit's stages the first prompt's, or that of `prompt`.

        raises   InputError where the run used no such artifact
        """
        for use in self.uses:
            if use.node.stage == stage and (prompt is None or use.node.prompt == prompt):
                return use.artifact
        have = ", ".join(dict.fromkeys(use.node.stage for use in self.uses))
        of_prompt = f" of the prompt {prompt!r}" if prompt is not None else ""
        raise InputError(f"the run used no artifact {stage!r}{of_prompt}; it has those of {have}")

    def dataset(self, stage: str, prompt: str | None = None) -> xarray.Dataset:
        """The same as a lazy xarray Dataset with named dimensions and labelled coordinates."""
        return self.artifact(stage, prompt).dataset()

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `tf run --json`."""
        stages = [
            {
                "stage": use.node.stage,
                "key": use.node.key.hex,
                "hit": use.hit,
                "seconds": round(use.seconds, 3),
                "bytes": use.artifact.nbytes,
            }
            for use in self.uses
        ]
        return {
            "outputs": [dict(output) for output in self.outputs], "stages": stages,
            "seconds": round(self.seconds, 3), "store": self.store, "run": self.run,
        }  # fmt: skip


def run_edit(plan: Plan, output: Path | None, engine: Wanted = "auto", progress: Progress | None = None) -> Result:
    """Edit the video once per prompt, and write the clips with their sidecars."""
    return edited(plan, clip_files(plan, output), walked_by(engine), progress)


def clip_files(plan: Plan, output: Path | None) -> list[Path]:
    """Where each prompt's clip goes; InputError, before anything is computed, where it could not be written."""
    suffix = ".mov" if plan.encoding.keep_alpha else ".mp4"
    files = output_files(plan.config.video, list(dict.fromkeys(plan.config.prompts)), output, suffix)
    check_outputs(files, plan.source, plan.encoding, plan.clip_size)
    if plan.encoding.needs_source and plan.source is None:
        option = "--keep-alpha" if plan.encoding.keep_alpha else "--source-rate"
        raise InputError(
            f"{option} reads {plan.config.video} again, which is not on this machine; put it there, or leave it out"
        )
    for file in files:
        check_sidecar_place(file)
    return files


def edited(plan: Plan, files: list[Path], walker: Walker, progress: Progress | None = None) -> Result:
    """Edit the video once per prompt; `files` are the prompts' clips, none where no clip is wanted."""
    began = time.perf_counter()
    prompts = list(dict.fromkeys(plan.config.prompts))
    with plan.leased():
        session, edits = _walk(plan, edit, "edit-video", walker, progress)
        frames = session.find(plan.decode)
        assert frames is not None, "an edit asks for its frames"
        wanted = list(zip(edits, files, strict=True)) if files else []
        clips = [_exported(plan, artifact, frames, file) for artifact, file in wanted]
        outputs = [_output(*each) for each in zip(prompts, files, clips, strict=False)]
        notes = list(dict.fromkeys(note for written in clips for note in written.notes))
        if clips and plan.source is None and plan.video.has_audio:
            notes.append(f"the clip has no sound: {plan.config.video} is not on this machine")
        new = _new_sidecars(plan, edits, files) if files else {}
        result = _result(session, outputs, notes, began, "run", new_files=bool(new))
    for file, sidecar in new.items():
        sidecar.write(file, result.run)
    return result


def prepared(plan: Plan, walker: Walker, progress: Progress | None = None) -> Result:
    """Compute the four stages that know no prompt."""
    began = time.perf_counter()
    with plan.leased():
        session, _ = _walk(plan, prepare_all, "prepare-video", walker, progress)
        return _result(session, [], [], began, "prepare", new_files=False)


def run_preview(plan: Plan, output: Path | None, engine: Wanted = "auto", progress: Progress | None = None) -> Result:
    """Edit the keyframes alone, once per prompt, and write them as pictures."""
    files = output_files(plan.config.video, list(dict.fromkeys(plan.config.prompts)), output, "-preview.png")
    check_pictures(files, plan.config.video)
    return previewed(plan, files, walked_by(engine), progress)


def previewed(plan: Plan, files: list[Path], walker: Walker, progress: Progress | None = None) -> Result:
    """Edit the keyframes alone; `files` are the prompts' pictures, none where none is wanted."""
    began = time.perf_counter()
    prompts = list(dict.fromkeys(plan.config.prompts))
    with plan.leased():
        session, edits = _walk(plan, preview, "preview-video", walker, progress)
        frames = session.find(plan.decode)
        assert frames is not None, "an edit asks for its frames"
        outputs = []
        for prompt, artifact, file in zip(prompts, edits, files, strict=False):
            preview_sheet(artifact, frames, prompt, file)
            outputs.append({"prompt": prompt, "file": str(file), "frames": int(artifact["rgb"].shape[0])})
        return _result(session, outputs, [], began, "preview", new_files=False)


def _exported(plan: Plan, edit: Artifact, frames: Artifact, file: Path) -> Written:
    """The clip written to `file`, unless these very bytes are already there."""
    encoding = plan.encoding
    what = (
        f"export {VERSION} {edit.digest} {frames.digest} {plan.video_key} {file.absolute()} "
        f"{encoding.model_dump_json()} {plan.source is not None}"
    )
    kept = plan.store.recall(what)
    if isinstance(kept, dict) and file.exists() and clip_hash(plan.store, file) == kept["blake3"]:
        return Written.model_validate(kept["written"])
    written = export_edit(
        edit, frames, file, step=plan.decode.spec.step, source=plan.source, encoding=encoding, original=plan.source
    )
    plan.store.remember(what, {"blake3": clip_hash(plan.store, file), "written": written.model_dump(mode="json")})
    return written


def _output(prompt: str, file: Path, written: Written) -> dict[str, Any]:
    """What a user is told of one clip."""
    return {
        "prompt": prompt,
        "file": str(file),
        "frames": written.frames,
        "fps": round(written.frames / written.seconds, 6),
        "width": written.width,
        "height": written.height,
    }


def _new_sidecars(plan: Plan, edits: list[Artifact], files: list[Path]) -> dict[Path, Sidecar]:
    """Clip → its sidecar, where another one or none lies beside it."""
    new = {}
    for (keyframes, _), artifact, file in zip(plan.edits, edits, files, strict=True):
        sidecar, there = Sidecar.of(plan, keyframes, artifact, file), written_sidecar(file)
        if there is None or not sidecar.like(there):
            new[file] = sidecar
    return new


def _walk(
    plan: Plan, work: Work, name: FlowName, walker: Walker, progress: Progress | None
) -> tuple[Session, list[Artifact]]:
    """Do `work` over a session, after a look at whether it can be done."""
    session = Session(plan, progress=progress or Quiet())
    missing = plan.to_compute(preview=name == "preview-video")
    if missing:
        if plan.runtime.runner == "here":
            check_device(plan)
        scratch = max(plan.scratch_bytes(node) for node in missing)  # that of one edit at a time
        _check_store(plan.store, plan.missing_bytes(missing) + scratch)
    return session, walker(session, work, name, bool(missing))


def walked_by(engine: Wanted) -> Walker:
    """Walked by an engine where there is something to compute."""

    def walk(session: Session, work: Work, name: FlowName, work_to_do: bool) -> list[Artifact]:
        spread = session.plan.runtime.runner
        if work_to_do and spread != "here" and engine == "direct":
            raise InputError(f"--runner {spread} is Prefect's, and --engine direct does without it; leave one out")
        if choose_engine(engine, work_to_do) == "direct":
            return work(session)
        return run_with_prefect(session, work, name)

    return walk


def _check_store(store: Store, needed: int) -> None:
    store.check_writable()
    free = store.free_bytes()
    if needed > free:
        raise FullPlaceError(
            f"this run would write up to {human_bytes(needed)} to {store.root}, where {human_bytes(free)} is free; "
            "free some space, choose another place with --store, or lower --token-budget"
        )


def _result(
    session: Session, outputs: list[dict[str, Any]], notes: list[str], began: float, command: str, new_files: bool
) -> Result:
    """The result; the store remembers a run that computed something, and where it can one that only wrote files."""
    uses, plan = session.used(), session.plan
    result = Result(outputs, uses, [*remarks(plan.store, uses), *notes], time.perf_counter() - began, plan.store.place)
    computed = any(not use.hit for use in uses)
    try:
        return replace(result, run=_saved(plan, result, command) if computed or new_files else None)
    except StorePlaceError:
        if computed:
            raise
        return result


def _saved(plan: Plan, result: Result, command: str) -> str:
    """Have the store remember a run, its paths such as any folder understands; returns its id."""
    config = plan.config.anywhere()
    answer = result.to_json()
    for output in answer["outputs"]:
        output["file"] = str(Path(output["file"]).absolute())
    del answer["run"]
    return plan.store.save_run(
        {
            "command": command,
            "config": config.model_dump(mode="json"),
            "runtime": plan.runtime.model_dump(mode="json"),
            "video": plan.video_key,
            **answer,
        }
    )

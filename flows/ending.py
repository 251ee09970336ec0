"""Why a run ended before its time, as one page of Markdown: what failed and where, what to do, what is kept."""

from __future__ import annotations

import shlex

from stages.diffusion.checks import FullDeviceError, NonFiniteLatents
from store.errors import FullPlaceError, InputError, SchemaError, SilentPlaceError, StoreError

from .command_line import run_command
from .markdown import cell, code, fenced, plain, table
from .plan import Plan
from .tasks import Session


def end_page(error: BaseException, sentence: str, session: Session | None) -> str:
    """The page of a run that `error` ended, of which `sentence` is told; without a session it had not begun."""
    stopped = not isinstance(error, Exception)  # Ctrl-C, or what Prefect's worker sends
    name = session.plan.config.video.stem if session else "the run"
    what_to_do = None if stopped else way_out(error, session.plan if session else None)
    return "\n".join(
        [
            f"# {plain(name)}: {'cancelled' if stopped else 'failed'}",
            "",
            "Somebody cancelled it." if stopped else f"**{plain(sentence)}**",
            "",
            *([f"What to do: {what_to_do}", ""] if what_to_do else []),
            *_where(error, session),
            *_kept(session),
        ]
    )


def way_out(error: BaseException, plan: Plan | None) -> str | None:
    """One way out, in Markdown, for each kind of error; None where the error's own sentence names it."""
    store = f" --store {shlex.quote(plan.store.place)}" if plan else ""
    if isinstance(error, NonFiniteLatents):
        return _finite(error, plan)
    if isinstance(error, FullDeviceError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "choose a smaller `--size`; or `--frames-per-pass 1`, if it was set higher; or close what else uses the GPU"
        )
    if isinstance(error, FullPlaceError):
        return f"see what can go with {code(f'tf gc --older-than 30d --dry-run{store}')}, then leave out `--dry-run`"
    if isinstance(error, SilentPlaceError):
        return f"it was tried again in vain; {code(f'tf doctor{store}')} says when the store answers"
    if isinstance(error, SchemaError) or (isinstance(error, StoreError) and not isinstance(error, InputError)):
        return f"{code(f'tf verify --repair{store}')} drops what is damaged, then run it again"
    if isinstance(error, InputError):
        return None
    if isinstance(error, OSError):
        return "mend what the sentence names, then run it again"
    return (
        "the run's log says where it came from; once more with `TOKENFLOW_DEBUG=1` and `--engine direct` shows it in a "
        "terminal"
    )


def _finite(error: NonFiniteLatents, plan: Plan | None) -> str:
    half = plan is not None and (
        plan.runtime.precision in ("float16", "bfloat16") or (plan.runtime.precision == "auto" and plan.device != "cpu")
    )
    if half and error.timestep is not None:
        return "run it with `--precision float32`: half precision overflows with some models"
    if error.timestep is None:
        return "the model's autoencoder cannot take this frame: check the model's files, or choose another `--model`"
    return "lower `--guidance-scale`; where that does not help, the model's weights are damaged: download it again"


def _where(error: BaseException, session: Session | None) -> list[str]:
    found = {
        "stage": getattr(error, "stage", None) or (session.stage_in_hand if session else None),
        "part": session.part_in_hand if session else None,
        "frame": getattr(error, "frame", None),
        "timestep": getattr(error, "timestep", None),
    }
    rows = [(name, cell(str(value))) for name, value in found.items() if value is not None]
    return table(("where", ""), rows) if rows else []


def _kept(session: Session | None) -> list[str]:
    """What of a run's work is there, and how to go on."""
    if session is None:
        return ["Nothing was begun: mend what the sentence says, and run it again."]
    kept = ", ".join(dict.fromkeys(code(use.node.stage) for use in session.used()))
    at = session.stage_in_hand
    goes_on = f"The next run goes on at {code(at)}, without the parts of it that are finished." if at else ""
    lines = [f"Kept: {kept or 'nothing yet'}. {goes_on}".rstrip(), ""]
    config = session.plan.config
    return [*lines, *fenced(run_command(config, session.store.place, wrapped=True))] if config.prompts else lines

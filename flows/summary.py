"""What a run did, as one page of Markdown: prompts, before and after, and where every artifact lies."""

from __future__ import annotations

import base64
import io
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from store.errors import TokenflowError
from store.layout import human_bytes

from .command_line import run_command
from .plan import Node
from .tasks import Session

URI_BYTES = 200_000  # of a picture that Prefect's page still shows quickly
MOST_FRAMES = 32
MOST_PICTURES = 4  # of prompts
SIZES = ((256, 75), (192, 65), (128, 55), (96, 40), (64, 25))  # largest side of a frame in pixels, WebP quality


def artifact_key(video: Path | None) -> str:
    """The name under which Prefect keeps the pages of one video's runs: lower case, digits, dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", video.stem.lower()).strip("-") if video else ""
    return f"tokenflow-edit-{name[:60].strip('-') or 'video'}"


def run_name(verb: str, video: str, prompts: Sequence[str]) -> str:
    """A flow run's name: "edit · woman-running · 'a marble statue' +2"."""
    more = f" +{len(prompts) - 1}" if len(prompts) > 1 else ""
    return " · ".join([verb, video, *([f"'{prompts[0]}'{more}"] if prompts else [])])


def summary(session: Session, links: Sequence[tuple[str, str]] = ()) -> str:
    """Before and after of each prompt, moving; the table of stages; the settings; links; how to make it again.

    links   (title, address)
    """
    plan = session.plan
    uses = session.used()
    computed = sum(use.seconds for use in uses if not use.hit)
    reused = sum(use.hit for use in uses)
    return "\n".join(
        [
            f"# {_plain(plan.config.video.stem)}",
            "",
            f"{reused} of {len(uses)} artifacts reused, {computed:.1f} s of computing on {plan.device} "
            f"of {_code(socket.gethostname())}.",
            "",
            *_pictures(session),
            *([" · ".join(f"[{_plain(title)}]({url})" for title, url in links), ""] if links else []),
            "| stage | prompt | | seconds | size | key |",
            "|---|---|---|---:|---:|---|",
            *(_row(use) for use in uses),
            "",
            ", ".join(f"{name} {_code(str(value))}" for name, value in _settings(session).items()),
            "",
            *_again(session),
        ]
    )


def end_page(error: BaseException, session: Session | None) -> str:
    """Why a run ended before its time: what failed and where, what is kept, what to do."""
    stopped = type(error).__name__ in ("KeyboardInterrupt", "TerminationSignal")  # Ctrl-C, or Prefect's worker
    sentence = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, TokenflowError):
        sentence = f"{type(error).__name__}: {sentence}; the run's log has the whole of it"
    name = session.plan.config.video.stem if session else "the run"
    where = {
        "stage": getattr(error, "stage", None) or (session.stage_in_hand if session else None),
        "part": session.part_in_hand if session else None,
        "frame": getattr(error, "frame", None),
        "timestep": getattr(error, "timestep", None),
    }
    rows = [f"| {name} | {_code(str(value))} |" for name, value in where.items() if value is not None]
    lines = [f"# {_plain(name)}: {'cancelled' if stopped else 'failed'}", ""]
    lines += ["Somebody cancelled it." if stopped else _plain(sentence), ""]
    lines += ["| where | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([*lines, *_kept(session)])


def _kept(session: Session | None) -> list[str]:
    """What of a run's work is there, and how to go on."""
    if session is None:
        return ["Nothing was begun: mend what the sentence says, and run again."]
    uses = session.used()
    kept = ", ".join(_code(use.node.stage) for use in uses) or "nothing yet"
    return [
        f"Kept: {kept}, and the finished parts of what was in hand. The next run goes on from there.",
        "",
        *_again(session),
    ]


def _again(session: Session) -> list[str]:
    """The command that makes the same run."""
    config = session.plan.config
    if not config.prompts:
        return []
    return ["The same again:", "", "```", run_command(config, session.store.place).replace("```", ""), "```"]


def _settings(session: Session) -> dict[str, object]:
    plan = session.plan
    config = plan.config
    return {
        "video": config.video.name,
        "model": config.model,
        "editor": config.editor,
        "steps": config.steps,
        "guidance_scale": plan.guidance_scale,
        "keyframe_interval": config.keyframe_interval,
        "seed": config.seed,
        "device": plan.device,
        "store": session.store.place,
    }


def before_after(
    pairs: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], seconds: float, limit: int = URI_BYTES
) -> str:
    """An animated WebP of (source, edit) side by side as a data URI of at most `limit` bytes, or "" where none fits.

    pairs      rgb (height, width, channel) uint8 each
    seconds    of the whole loop
    """
    for side, quality in SIZES:
        uri = _animation(pairs, max(20, round(1000 * seconds / len(pairs))), side, quality)
        if len(uri) <= limit:
            return uri
    return ""


def _pictures(session: Session) -> list[str]:
    """Lines with every prompt and, while they fit in `URI_BYTES` together, its edit beside the source."""
    lines: list[str] = []
    limit = URI_BYTES // max(1, min(len(session.plan.edits), MOST_PICTURES))
    for number, (keyframes, edit) in enumerate(session.plan.edits):
        lines += [f"- {_code(edit.prompt or '')}", ""]
        if number < MOST_PICTURES:
            lines += _picture(session, keyframes, edit, limit)
    return lines


def _picture(session: Session, keyframes_node: Node, edit_node: Node, limit: int) -> list[str]:
    """A line that shows an edit beside the source: the clip, or its keyframes where they are all."""
    plan = session.plan
    source, edit, keyframes = plan.find(plan.decode), plan.find(edit_node), plan.find(keyframes_node)
    edited = edit or keyframes
    if source is None or edited is None:
        return []
    places = range(edited["rgb"].shape[0]) if edit else edited.schema.coordinates["frame"]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(MOST_FRAMES, len(places))).round().astype(int))
    pairs = [(source["rgb"][int(places[k])], edited["rgb"][int(k)]) for k in chosen]
    seconds = float(np.sum(source["duration"][:])) if edit else 0.4 * len(pairs)
    uri = before_after(pairs, seconds, limit)
    return [f"![source and edit]({uri})", ""] if uri else []


def _animation(pairs: Sequence[tuple[Any, Any]], milliseconds: int, side: int, quality: int) -> str:
    pictures = [_beside(source, edit, side) for source, edit in pairs]
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=quality
    )
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _beside(source: Any, edit: Any, side: int) -> Image.Image:
    """Two frames of one size side by side, as large as `side` allows; small ones are not enlarged beyond 4×."""
    height, width = edit.shape[:2]
    factor = min(side / max(height, width), 4.0)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.new("RGB", (2 * size[0] + 4, size[1]), "white")
    for place, frame in enumerate((source, edit)):
        picture.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (place * (size[0] + 4), 0))
    return picture


def _row(use: Any) -> str:
    prompt = "" if use.node.prompt is None else _code(use.node.prompt)
    done = "reused" if use.hit else "computed"
    seconds = "" if use.hit else f"{use.seconds:.1f}"
    size = human_bytes(use.artifact.nbytes)
    return f"| {use.node.stage} | {prompt} | {done} | {seconds} | {size} | {_code(use.artifact.key[:12])} |"


def _code(text: str) -> str:
    """Text as inline code that can stand in a table's cell."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "¦") + "`"


def _plain(text: str) -> str:
    """Text without the signs Markdown would read."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)

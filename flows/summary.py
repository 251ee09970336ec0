"""What a run did, as one page of Markdown: prompts, before and after, and where every artifact lies."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from store.layout import human_bytes
from store.schemas import Arrays

from .command_line import run_command
from .config import EditConfig
from .export import Unpadded
from .markdown import cell, code, fenced, plain, table
from .plan import Node, Plan
from .sidecar import sidecar_file
from .tasks import Session, Use

URI_BYTES = 200_000  # of a picture that Prefect's page still shows quickly
MOST_FRAMES = 32
MOST_PICTURES = 4  # of prompts
MAGNIFIED = 4  # times at most: small frames are hard to see
SIZES = (  # largest side of a frame in pixels, WebP quality, share of the frames: the first that fits is taken
    (320, 80, 1.0), (320, 60, 1.0), (256, 70, 1.0), (256, 50, 1.0), (256, 50, 0.5), (224, 40, 0.5), (192, 40, 0.5),
    (160, 35, 0.5), (128, 30, 0.5), (96, 30, 0.34), (64, 25, 0.25),
)  # fmt: skip


def artifact_key(video: Path | None) -> str:
    """The name under which Prefect keeps the pages of one video's runs: lower case, digits, dashes."""
    stem = video.stem if video else "video"
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:60].strip("-")
    return f"tokenflow-edit-{name or hashlib.sha256(stem.encode(errors='replace')).hexdigest()[:8]}"


def run_name(verb: str, video: str, prompts: Sequence[str]) -> str:
    """A flow run's name: "edit · woman-running · 'a marble statue' +2"."""
    more = f" +{len(prompts) - 1}" if len(prompts) > 1 else ""
    return " · ".join([verb, video, *([f"'{prompts[0]}'{more}"] if prompts else [])])


def summary(
    session: Session, links: Sequence[tuple[str, str]] = (), clips: Sequence[Path] = (), seconds: float | None = None
) -> str:
    """Before and after of each prompt, moving; the table of stages; the settings; links; how to make it again.

    links     (title, address)
    clips     that were written
    seconds   that the run took
    """
    plan = session.plan
    uses = session.used()
    return "\n".join(
        [
            f"# {plain(plan.config.video.stem)}",
            "",
            _headline(plan, uses, seconds),
            "",
            *([" · ".join(f"[{plain(title)}]({url})" for title, url in links), ""] if links else []),
            *_pictures(session),
            *_stages(plan, uses),
            f"Settings: {_settings(plan)}",
            "",
            *_again(plan, clips),
        ]
    )


def _headline(plan: Plan, uses: Sequence[Use], seconds: float | None) -> str:
    """What it was about, how long it took, and where."""
    width, height = plan.decode.spec.width, plan.decode.spec.height
    reused, computed = sum(use.hit for use in uses), sum(use.seconds for use in uses if not use.hit)
    words = [
        f"{plan.frames} frames of {width}×{height}",
        f"{reused} of {len(uses)} artifacts reused",
        f"{computed:.1f} s of computing" + ("" if seconds is None else f", {seconds:.1f} s in all"),
        f"on {plan.device} of {code(socket.gethostname())}",
    ]
    return " · ".join(words)


def _stages(plan: Plan, uses: Sequence[Use]) -> list[str]:
    """A row per artifact: reused or computed, seconds, bytes, key; which edit it is, where there are several."""
    numbers = {node.key.hex: number for number, pair in enumerate(plan.edits, 1) for node in pair}
    several = len(plan.edits) > 1
    rows = [
        [
            use.node.stage,
            *([str(numbers.get(use.node.key.hex, "")) or " "] if several else []),
            "reused" if use.hit else "computed",
            "" if use.hit else f"{use.seconds:.1f}",
            human_bytes(use.artifact.nbytes).replace(" ", "\u00a0"),
            cell(use.node.key.hex[:12]),
        ]
        for use in uses
    ]
    return table(["stage", *(["edit"] if several else []), "", "seconds", "size", "key"], rows, ("seconds", "size"))


def _settings(plan: Plan) -> str:
    """Every setting by its title, with what the model advised written out; nothing of what was left empty."""
    config = plan.config
    used = {
        **{name: getattr(config, name) for name in EditConfig.model_fields if name not in ("video", "prompts")},
        "guidance_scale": plan.guidance_scale,
        "inversion_steps": config.inversion_steps or config.steps,
    }
    titled = [(str(EditConfig.model_fields[name].title or name), value) for name, value in used.items()]
    titled += [("Video", config.video.name), ("Store", plan.store.place)]
    return " · ".join(f"{title.lower()} {code(str(value))}" for title, value in titled if value not in (None, "", {}))


def _again(plan: Plan, clips: Sequence[Path]) -> list[str]:
    """The commands that make the same run, or the same clips from what lies beside them."""
    if not plan.config.prompts:
        return []
    config = plan.config.anywhere() if plan.source else plan.config
    commands = [run_command(config, plan.store.place, runtime=plan.runtime, wrapped=True)]
    sidecars = [sidecar_file(clip) for clip in clips if sidecar_file(clip).is_file()]
    commands += [shlex.join(["tf", "reproduce", str(file), "--store", plan.store.place]) for file in sidecars]
    return ["The same again:", "", *fenced("\n".join(commands))]


def _pictures(session: Session) -> list[str]:
    """Lines with every prompt and, while they fit in `URI_BYTES` together, its edit beside the source."""
    plan = session.plan
    lines: list[str] = []
    limit = URI_BYTES // max(1, min(len(plan.edits), MOST_PICTURES))
    for number, (keyframes, edit) in enumerate(plan.edits, 1):
        lines += [f"**{f'Edit {number}' if len(plan.edits) > 1 else 'Prompt'}** {code(edit.prompt or '')}", ""]
        if number <= MOST_PICTURES:
            lines += _picture(plan, keyframes, edit, limit)
    return lines


def _picture(plan: Plan, keyframes_node: Node, edit_node: Node, limit: int) -> list[str]:
    """A line that shows an edit beside the source: the clip, or its keyframes where they are all."""
    source, edit, keyframes = plan.find(plan.decode), plan.find(edit_node), plan.find(keyframes_node)
    edited = edit or keyframes
    if source is None or edited is None:
        return []
    frames = list(range(edited["rgb"].shape[0])) if edit else list(edited.schema.coordinates["frame"])
    uri = before_after(
        Unpadded(source, source), Unpadded(edited, source), [int(frame) for frame in frames],
        in_time=edit is not None, limit=limit,
    )  # fmt: skip
    return [f"![source and edit, side by side]({uri})", ""] if uri else []


def before_after(
    source: Arrays, edited: Arrays, frames: Sequence[int], in_time: bool = True, limit: int = URI_BYTES
) -> str:
    """An animated WebP of source and edit side by side as a data URI of at most `limit` bytes, or "" where none fits.

    frames    number in the source of each of the edited frames
    in_time   as fast as the source, else slow enough to look at each
    """
    looked_at = [(frames[k], source["rgb"][frames[k]], edited["rgb"][k]) for k in _evenly(len(frames), MOST_FRAMES)]
    starts = np.append(source["pts"][:], source["pts"][-1:] + source["duration"][-1:])  # seconds
    for side, quality, share in SIZES:
        chosen = [looked_at[k] for k in _evenly(len(looked_at), max(1, round(len(looked_at) * share)))]
        stills = [_beside(before, after, side) for _, before, after in (chosen[0], chosen[len(chosen) // 2])]
        if sum(len(_webp([still], [0], quality)) for still in stills) / 2 * len(chosen) > 0.76 * limit:
            continue  # a digit of base64 holds six bits
        ends = [*(frame for frame, *_ in chosen[1:]), len(starts) - 1]
        seconds = [
            float(starts[end] - starts[frame]) if in_time else 0.4
            for (frame, *_), end in zip(chosen, ends, strict=True)
        ]
        pictures = [_beside(before, after, side) for _, before, after in chosen]
        content = _webp(pictures, [max(20, round(1000 * each)) for each in seconds], quality)
        uri = "data:image/webp;base64," + base64.b64encode(content).decode()
        if len(uri) <= limit:
            return uri
    return ""


def _evenly(count: int, most: int) -> list[int]:
    """At most so many places out of `count`, evenly spaced from the first on."""
    return sorted({place * count // most for place in range(most)})


def _webp(pictures: Sequence[Image.Image], milliseconds: Sequence[int], quality: int) -> bytes:
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=list(milliseconds), loop=0, quality=quality
    )
    return file.getvalue()


def _beside(source: Any, edit: Any, side: int) -> Image.Image:
    """Two frames of one size side by side, as large as `side` allows."""
    height, width = edit.shape[:2]
    factor = min(side / max(height, width), MAGNIFIED)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.new("RGB", (2 * size[0] + 4, size[1]), "white")
    for place, frame in enumerate((source, edit)):
        picture.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (place * (size[0] + 4), 0))
    return picture

"""What a run did, as one page of Markdown: prompts, before and after, and where every artifact lies."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from store.layout import human_bytes

from .plan import Plan
from .tasks import Session

URI_BYTES = 200_000  # of a picture that Prefect's page still shows quickly
MOST_FRAMES = 32
SIZES = ((256, 75), (192, 65), (128, 55), (96, 40), (64, 25))  # largest side of a frame in pixels, WebP quality


def artifact_key(plan: Plan) -> str:
    """The name under which Prefect keeps the pages of one video's runs: lower case, digits, dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", plan.config.video.stem.lower()).strip("-")
    return f"tokenflow-edit-{name[:60].strip('-') or 'video'}"


def summary(session: Session) -> str:
    """Prompts, a moving before and after of the first, the table of stages, and the settings."""
    plan = session.plan
    config = plan.config
    prompts = [f"- {_code(prompt)}" for prompt in config.prompts]
    settings = {
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
    return "\n".join(
        [
            f"# {_plain(config.video.stem)}",
            "",
            *prompts,
            "",
            *_picture(session),
            "| stage | prompt | | seconds | size | key |",
            "|---|---|---|---:|---:|---|",
            *(_row(use) for use in session.used()),
            "",
            ", ".join(f"{name} {_code(str(value))}" for name, value in settings.items()),
        ]
    )


def before_after(pairs: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], seconds: float) -> str:
    """An animated WebP of (source, edit) side by side as a data URI of at most `URI_BYTES`, or "" where none fits.

    pairs      rgb (height, width, channel) uint8 each
    seconds    of the whole loop
    """
    for side, quality in SIZES:
        uri = _animation(pairs, max(20, round(1000 * seconds / len(pairs))), side, quality)
        if len(uri) <= URI_BYTES:
            return uri
    return ""


def _picture(session: Session) -> list[str]:
    """Lines that show the first prompt's edit beside the source: the clip, or its keyframes where they are all."""
    plan = session.plan
    keyframes_node, edit_node = plan.edits[0]
    source, edit, keyframes = plan.find(plan.decode), plan.find(edit_node), plan.find(keyframes_node)
    edited = edit or keyframes
    if source is None or edited is None:
        return []
    places = range(edited["rgb"].shape[0]) if edit else edited.schema.coordinates["frame"]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(MOST_FRAMES, len(places))).round().astype(int))
    pairs = [(source["rgb"][int(places[k])], edited["rgb"][int(k)]) for k in chosen]
    seconds = float(np.sum(source["duration"][:])) if edit else 0.4 * len(pairs)
    uri = before_after(pairs, seconds)
    return [f"![source and edit]({uri})", ""] if uri else []


def _animation(pairs: Sequence[tuple[Any, Any]], milliseconds: int, side: int, quality: int) -> str:
    pictures = [_beside(source, edit, side) for source, edit in pairs]
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=quality
    )
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _beside(source: Any, edit: Any, side: int) -> Image.Image:
    """Two frames of one size side by side, as large as `side` allows; small ones are not enlarged beyond 2×."""
    height, width = edit.shape[:2]
    factor = min(side / max(height, width), 2.0)
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

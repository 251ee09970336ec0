"""The page of a sweep: all clips playing in step, the source first, scores beside each, to sort and to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import decode_frames
from store.layout import write_whole

from .plan import Plan
from .scores import LOWER_FIRST, SCORES, columns

DIGITS = {"change": 1, "warp_error": 2, "background_psnr": 1, "text_alignment": 1, "frame_consistency": 1}


def write_page(
    file: Path, plan: Plan, entries: Sequence[Mapping[str, Any]], sources: Mapping[int, str], wanted: int, flow: str
) -> None:
    """Write the page, whole or not at all; it plays the clips that lie beside it, and loads nothing else.

    entries   as in `sweep.json`
    sources   number of an edit → the clip of the frames it was made of
    wanted    edits of the whole sweep, of which `entries` are done
    flow      the estimator of motion, where the true one is unknown
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    measured = columns([entry["scores"] for entry in entries])
    choices = [{"prompt": entry["prompt"], **{n: str(v) for n, v in entry["choice"].items()}} for entry in entries]
    tried = {name: list(dict.fromkeys(c[name] for c in choices if name in c)) for choice in choices for name in choice}
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("sweep.html")  # fmt: skip
    page = template.render(
        video=plan.config.video.name, model=plan.config.model, cards=list(zip(entries, choices, strict=True)),
        wanted=wanted, flow=flow, sources=list(dict.fromkeys(sources.values())), lower_first=LOWER_FIRST,
        fps=float(decode_frames.rate(plan.decode.spec, plan.video)), digits=DIGITS,
        tried={name: values for name, values in tried.items() if len(values) > 1},
        scores=[(name, name.replace("_", " ").replace("psnr", "PSNR"), SCORES[name]) for name in measured],
        width=plan.clip_size[0],
    )  # fmt: skip
    write_whole(file, page)

"""What a match's own signs of trust are worth, where the truth is known, and whether an edit gains by heeding them.

    python -m benchmarks.confidence [--clips 12] [--store DIR] [-o RESULT.json]

Two signs: the cosine of a match, and whether the keyframe's token, matched back, returns to within one token. Two
questions of each: does it find the tokens that are hidden in the keyframe, and those whose match is wrong? Then the
edits: where exactly one neighbour passes the check, that one alone is followed; measured against edits without it.
The clips and options are those of benchmarks/fidelity.toml.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.config import make_runtime
from flows.edit import edit
from flows.measure import Known, edit_row
from flows.plan import Plan
from flows.prepare import prepare
from flows.runtime import load_backbone
from flows.suite import Clip, pocket_clips, read_suite
from flows.tasks import Session
from stages import edit_keyframes, propagate_tokens
from stages.diffusion.attention import PropagatedAttention
from stages.diffusion.matching import normalized
from stages.editing.denoising import Denoiser, Stretch
from stages.measures.correspondence import WITHIN, grid_of, positions, token_errors
from stages.measures.optical_flow import choose
from stages.measures.statistics import interval, paired_difference
from store.store import Store

SUITE = Path(__file__).parent / "fidelity.toml"
Values = np.ndarray[Any, Any]


def main() -> None:
    """Measure both, print both tables, write the result."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, default=12)
    arguments.add_argument("--store", type=Path, required=True)
    arguments.add_argument("-o", "--output", type=Path)
    options = arguments.parse_args()
    store, suite = Store(options.store), read_suite(SUITE)
    assert suite.pocket is not None
    clips = pocket_clips(suite.pocket, store.root / "clips")[: options.clips]
    plans = [Plan(suite.config(clip, suite.settings[0]), make_runtime(), store) for clip in clips]
    backbone = load_backbone(plans[0])
    signs = table_of_signs(
        [sign for plan, clip in zip(plans, clips, strict=True) for sign in signs_of(plan, clip, backbone)]
    )
    print(json.dumps(signs, indent=1), flush=True)
    edits = table_of_edits([edited_both_ways(plan, clip, backbone) for plan, clip in zip(plans, clips, strict=True)])
    print(json.dumps(edits, indent=1))
    if options.output:
        options.output.write_text(json.dumps({"clips": len(clips), "signs": signs, "edits": edits}, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ signs of trust


def signs_of(plan: Plan, clip: Clip, backbone: Any) -> Iterator[dict[str, Any]]:
    """Per layer of at least 64 tokens, at every fifth step: cosine, check, error, hidden of all matches of a clip."""
    session = Session(plan, backbone=lambda: backbone)
    prepared = prepare(session)
    field, tokens, frames = prepared.field(), prepared.tokens(), prepared.frames()["rgb"][:]
    known = Known.of(clip, plan.decode.spec, frames, frames, choose())
    for layer in plan.layout.layers:
        if layer.tokens < 64:
            continue
        size = grid_of(layer.tokens, plan.layout.latent_height, plan.layout.latent_width)
        for step in range(0, len(plan.timesteps), 5):
            units = normalized(torch.from_numpy(tokens[f"tokens.{layer.name}"][step]))
            yield {"tokens": layer.tokens, "step": step, **matches(units, field, step, size, known)}


def matches(units: Tensor, field: Any, step: int, size: tuple[int, int], known: Known) -> dict[str, Any]:
    """Of every frame that is no keyframe and each of its neighbours, one after the other: flat arrays over tokens."""
    keyframes, neighbour = field["keyframes"][step], field["neighbour"][step]
    found: dict[str, list[Tensor]] = {"cosine": [], "returns": [], "error": [], "hidden": []}
    for frame, sides in enumerate(neighbour):
        for target in {int(keyframes[side]) for side in sides} - {frame}:
            cosines = units[frame] @ units[target].T
            index, returns = cosines.argmax(1), returning(cosines, size)
            moved, hidden = (part[0] for part in known.travels([(frame, target)], *size))
            found["cosine"].append(cosines.amax(1))
            found["returns"].append(returns)
            found["error"].append(token_errors(index, moved).flatten())
            found["hidden"].append(hidden.flatten())
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def returning(cosines: Tensor, size: tuple[int, int]) -> Tensor:
    """Which tokens come back to within one token when their match is matched back; cosines (token, key token)."""
    places = positions(*size)
    there, back = cosines.argmax(1), cosines.argmax(0)
    return (places[back[there]] - places).norm(dim=-1) <= WITHIN


def table_of_signs(signs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per number of tokens: how often a token is hidden or wrongly matched, and how well either sign tells."""
    table = []
    for tokens in sorted({sign["tokens"] for sign in signs}, reverse=True):
        own = [sign for sign in signs if sign["tokens"] == tokens]
        cosine, returns, error, hidden = (
            np.concatenate([s[n] for s in own]) for n in ("cosine", "returns", "error", "hidden")
        )
        seen, wrong = ~hidden, error > WITHIN
        table.append(
            {
                "tokens": tokens,
                "hidden_share": rounded(hidden.mean()),
                "wrong_share_of_visible": rounded(wrong[seen].mean()),
                "cosine_auc_hidden": rounded(area_under_curve(-cosine, hidden)),
                "cosine_auc_wrong": rounded(area_under_curve(-cosine[seen], wrong[seen])),
                "check_fails_hidden": rounded((~returns)[hidden].mean()),
                "check_fails_visible": rounded((~returns)[seen].mean()),
                "check_precision_hidden": rounded(hidden[~returns].mean()),
                "check_fails_wrong": rounded((~returns)[seen & wrong].mean()),
                "check_fails_right": rounded((~returns)[seen & ~wrong].mean()),
                "accuracy_all": rounded((~wrong)[seen].mean()),
                "accuracy_of_returning": rounded((~wrong)[seen & returns].mean()),
            }
        )
    return table


def area_under_curve(score: Values, positive: Values) -> float:
    """Probability that a positive has the higher score than a negative (area under the ROC curve); 0.5 is chance."""
    if positive.all() or not positive.any():
        return float("nan")
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


# ------------------------------------------------------------------------------------------------ edits


class Heeding(Denoiser):
    """Propagation in which a token follows one neighbour alone where exactly that one passes the check."""

    passing: dict[tuple[int, str], Values]  # (step, layer) → (frame, side, token) bool

    def gathering(
        self, stretch: Stretch, frames: Sequence[int], layer: str, base_tokens: Tensor, rows: Tensor, weight: Tensor
    ) -> PropagatedAttention:
        passes = torch.from_numpy(self.passing[stretch.step, layer][list(frames)])
        return PerToken(base_tokens, rows, heeded(weight, passes))


class PerToken(PropagatedAttention):
    """The same gather with a weight per token (frame, side, token)."""

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens, flat = self.base_tokens.shape[2], self.base_tokens.flatten(1, 2)
        previous, following = (flat.index_select(1, side).unflatten(1, (-1, tokens)) for side in self.rows)
        return torch.lerp(following, previous, self.weight[:, 0, :, None]).flatten(0, 1)


def heeded(weight: Tensor, passes: Tensor) -> Tensor:
    """Weights (frame, side, token): all on the one side that passes, as they were where both do or neither."""
    shared = weight[..., None].expand_as(passes).clone()
    for side in (0, 1):
        alone = passes[:, side] & ~passes[:, 1 - side]
        shared[:, side][alone], shared[:, 1 - side][alone] = 1.0, 0.0
    return shared


def edited_both_ways(plan: Plan, clip: Clip, backbone: Any) -> dict[str, dict[str, float]]:
    """The measures of one clip's edit as it is, and heeding the check."""
    session = Session(plan, backbone=lambda: backbone)
    prepared = prepare(session)
    frames = prepared.frames()["rgb"][:]
    floor = backbone.decode(backbone.encode(frames))
    known = Known.of(clip, plan.decode.spec, frames, floor, choose())
    plain = edit(session)[0]["rgb"][:]
    heeding = edited_heeding(plan, session, backbone)
    prompt = clip.prompts[0]
    return {"plain": edit_row(known, plain, prompt), "heeding": edit_row(known, heeding, prompt)}


def edited_heeding(plan: Plan, session: Session, backbone: Any) -> Values:
    """The edited frames, rgb (frame, height, width, 3) uint8, made outside the store."""
    prepared, spec = prepare(session), plan.edits[0][0].spec
    source: dict[str, Any] = {"latents": prepared.latents(), "tokens": prepared.tokens(), "field": prepared.field()}
    Heeding.passing = dict(checks(plan, source["tokens"], source["field"]))
    given = {**source, "timesteps": plan.timesteps, "backbone": backbone}
    keeping = edit_keyframes.Denoiser, propagate_tokens.Denoiser
    edit_keyframes.Denoiser = propagate_tokens.Denoiser = Heeding  # type: ignore[misc]
    try:
        keyframes: dict[str, Any] = {"frame": source["field"]["support"]}
        trajectory, pictures = [], []
        for block in edit_keyframes.run(spec, range(1), **given):
            if block.variable == "latents":
                trajectory.append(block.values)
            elif block.variable == "clean_latents":
                keyframes["clean_latents"] = block.values
            else:
                pictures.append(block.values)
        keyframes["latents"], keyframes["rgb"] = np.concatenate(trajectory), np.concatenate(pictures)
        blocks = propagate_tokens.run(plan.edits[0][1].spec, range(1), edit=spec, keyframe_edit=keyframes, **given)
        return np.concatenate([block.values for block in blocks if block.variable == "rgb"])
    finally:
        edit_keyframes.Denoiser, propagate_tokens.Denoiser = keeping  # type: ignore[misc]


def checks(plan: Plan, tokens: Any, field: Any) -> Iterator[tuple[tuple[int, str], Values]]:
    """(step, layer) → which matches (frame, side, token) return to within one token."""
    for layer in plan.layout.layers:
        size = grid_of(layer.tokens, plan.layout.latent_height, plan.layout.latent_width)
        for step in range(len(plan.timesteps)):
            units = normalized(torch.from_numpy(tokens[f"tokens.{layer.name}"][step]))
            targets = field["keyframes"][step][field["neighbour"][step]]
            yield (
                (step, layer.name),
                np.stack(
                    [
                        np.stack([returning(units[frame] @ units[int(target)].T, size).numpy() for target in sides])
                        for frame, sides in enumerate(targets)
                    ]
                ),
            )


def table_of_edits(edits: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Per measure: both means, and the paired difference with its 95 % interval."""
    table = {}
    for name in edits[0]["plain"]:
        plain, heeding = (np.array([each[way].get(name, np.nan) for each in edits]) for way in ("plain", "heeding"))
        difference = [rounded(value) for value in paired_difference(heeding, plain)]
        table[name] = {
            "plain": rounded(interval(plain)[0]),
            "heeding": rounded(interval(heeding)[0]),
            "difference": difference,
        }
    return table


def rounded(value: Any) -> float:
    """Four digits are more than is known."""
    return round(float(value), 4)


if __name__ == "__main__":
    main()

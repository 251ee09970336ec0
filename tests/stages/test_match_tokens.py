"""Promises of the field: the brute-force nearest neighbours over the whole clip, however it is walked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from stages import match_tokens
from stages.diffusion.keyframes import shots
from stages.extract_tokens import SourcePass
from stages.extract_tokens import Spec as ExtractSpec
from store.errors import InputError
from tests.tiny.method import Prepared, rematched


@dataclass
class Given:
    """Tokens made up by the test; remembers in which blocks they were asked for."""

    values: Tensor  # (step, frame, token, channel)
    asked: list[tuple[int, range]] = field(default_factory=list)

    def read(self, step: int, frames: range) -> Mapping[str, Tensor]:
        self.asked.append((step, frames))
        return {"layer": self.values[step, frames.start : frames.stop]}


def matched(tokens: Given, spec: match_tokens.Spec) -> dict[str, np.ndarray[Any, Any]]:
    """All blocks of the stage, put together."""
    steps, frames = tokens.values.shape[:2]
    blocks = match_tokens.run(
        spec, range(steps), tokens=tokens, frames=frames, steps=steps, layers=("layer",), injected_layers=("layer",)
    )
    found: dict[str, list[list[np.ndarray[Any, Any]]]] = {}
    for block in blocks:
        for step, values in enumerate(block.values, block.start[0]):
            of_step = found.setdefault(block.variable, [[] for _ in range(steps)])[step]
            assert sum(map(len, of_step)) == block.start[1], "in order"
            of_step.append(values)
    return {name: np.stack([np.concatenate(each) for each in values]) for name, values in found.items()}


def brute_force(values: Tensor, keyframes: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """(index, similarity) (frame, side, token) of one step: every cosine in float64, over all frames at once."""
    units = torch.nn.functional.normalize(values.double(), dim=-1)
    index, similarity = [], []
    for frame in range(len(values)):
        before, after = [k for k in keyframes if k <= frame], [k for k in keyframes if k >= frame]
        sides = [(before or after)[-1 if before else 0], (after or before)[0 if after else -1]]
        cosines = torch.stack([units[frame] @ units[keyframe].T for keyframe in sides])
        index.append(cosines.argmax(-1))
        similarity.append(cosines.amax(-1))
    return torch.stack(index), torch.stack(similarity)


@given(
    frames=st.integers(1, 40), interval=st.integers(1, 20), offsets=st.integers(1, 20), seed=st.integers(0, 999),
)  # fmt: skip
@example(frames=1, interval=8, offsets=2, seed=0)  # one frame
@example(frames=5, interval=8, offsets=1, seed=0)  # shorter than an interval
@example(frames=33, interval=16, offsets=16, seed=0)  # the last interval is one frame, in a block of its own
@example(frames=17, interval=1, offsets=1, seed=0)  # every frame a keyframe
@example(frames=40, interval=20, offsets=20, seed=5)  # a whole block without a keyframe
def test_the_field_is_the_brute_force_one(frames: int, interval: int, offsets: int, seed: int) -> None:
    values = torch.randn(2, frames, 7, 5, generator=torch.Generator().manual_seed(seed)).half()
    spec = match_tokens.Spec(keyframe_interval=interval, keyframe_offsets=offsets, seed=seed)
    found = matched(Given(values), spec)
    for step in range(2):
        keyframes = found["keyframes"][step]
        index, similarity = brute_force(values[step], keyframes)
        assert np.array_equal(found["index.layer"][step], index.numpy())
        np.testing.assert_allclose(found["similarity.layer"][step], similarity.numpy(), rtol=0, atol=6e-4)
        assert np.array_equal(found["source.layer"][step], values[step, keyframes.tolist()].numpy())
        own = np.broadcast_to(np.arange(7), (len(keyframes), 2, 7))
        assert np.array_equal(found["index.layer"][step, keyframes], own), "a keyframe's tokens match themselves"
        assert (found["similarity.layer"][step, keyframes] == 1).all()
    assert found["index.layer"].dtype == np.uint16
    assert found["similarity.layer"].dtype == np.float16


@given(
    frames=st.integers(2, 40), interval=st.integers(1, 20), seed=st.integers(0, 999),
    cuts=st.lists(st.integers(1, 39), max_size=5, unique=True).map(sorted),
)  # fmt: skip
@example(frames=34, interval=8, seed=0, cuts=[1, 16, 33])  # shots of one frame, and a cut at a block's border
def test_no_index_crosses_a_cut(frames: int, interval: int, seed: int, cuts: list[int]) -> None:
    """The field of a clip of several shots is that of each shot alone."""
    values = torch.randn(1, frames, 7, 5, generator=torch.Generator().manual_seed(seed)).half()
    found = matched(Given(values), match_tokens.Spec(keyframe_interval=interval, cuts=tuple(cuts), seed=seed))
    [keyframes], [neighbour] = found["keyframes"], found["neighbour"]
    for shot in shots(frames, cuts):
        own = keyframes[(keyframes >= shot.start) & (keyframes < shot.stop)]
        assert np.isin(keyframes[neighbour[shot]], own).all()
        index, similarity = brute_force(values[0, shot.start : shot.stop], own - shot.start)
        assert np.array_equal(found["index.layer"][0, shot], index.numpy())
        np.testing.assert_allclose(found["similarity.layer"][0, shot], similarity.numpy(), rtol=0, atol=6e-4)


def test_a_keyframe_with_equal_tokens_still_matches_itself() -> None:
    """Among equal tokens argmax would take the lowest: a keyframe would lose its own T_base."""
    values = torch.ones(1, 4, 6, 3).half()
    found = matched(Given(values), match_tokens.Spec(keyframe_interval=4, keyframe_offsets=1))
    assert np.array_equal(found["index.layer"][0, found["keyframes"][0, 0]], [list(range(6))] * 2)


def test_tokens_are_read_once_and_in_order() -> None:
    tokens = Given(torch.randn(3, 40, 4, 3).half())
    matched(tokens, match_tokens.Spec(keyframe_interval=5, keyframe_offsets=5))
    assert tokens.asked == [(step, part) for step in range(3) for part in (range(16), range(16, 32), range(32, 40))]


def test_no_more_than_two_keyframe_intervals_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_tokens, "WHOLE_PART_BYTES", 16 * 2 * 4 * 2)
    matcher = match_tokens.Matcher(200, list(range(3, 200, 8)), keep_source=False)
    for first in range(0, 200, 8):
        matcher.take(range(first, first + 8), torch.randn(8, 4, 3))
        assert sum(len(frames) for frames, _ in matcher.waiting) <= 16
        for block in matcher.finished(0, "layer"):
            assert block.values.shape[1] in (16, 8), "whole chunks, and what is left at the end"
        assert matcher.index is not None and len(matcher.index) <= 32
    assert not len(matcher.index)


def test_source_tokens_leave_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_tokens, "WHOLE_PART_BYTES", 16 * 4 * 3 * 2)
    matcher = match_tokens.Matcher(200, list(range(3, 200, 8)), keep_source=True)
    left = []
    for first in range(0, 200, 8):
        matcher.take(range(first, first + 8), torch.full((8, 4, 3), float(first)))
        left += [block for block in matcher.finished(0, "layer") if block.variable == "source.layer"]
        assert len(matcher.source) <= 16
    assert [block.start[1] for block in left] == [0, 16]
    values = np.concatenate([block.values[0] for block in left])
    assert values[:, 0, 0].tolist() == [8.0 * place for place in range(25)]


@pytest.mark.parametrize("whole", [0, 3000, 1 << 19])
def test_blocks_are_whole_chunks_whatever_is_small(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    monkeypatch.setattr(match_tokens, "WHOLE_PART_BYTES", whole)
    names, frames = tuple(prepared.backbone.layers), prepared.frames
    spec = match_tokens.Spec(keyframe_interval=4, keyframe_offsets=2)
    schema = match_tokens.outputs(spec, latents=prepared.schemas["latents"], layout=prepared.layout)
    assert len({variable.chunks[0] for variable in schema.variables.values()}) == (2 if whole == 3000 else 1)
    for block in match_tokens.run(
        spec, range(5), tokens=match_tokens.StoredTokens(prepared.tokens, names, "cpu"), frames=frames, steps=5,
        layers=names, injected_layers=prepared.layout.injected_layers,
    ):  # fmt: skip
        variable = schema.variables[block.variable]
        if block.variable not in ("keyframes", "neighbour", "weights"):
            for start, length, size, chunk in zip(
                block.start, block.values.shape, variable.shape, variable.chunks, strict=True
            ):
                assert start % chunk == 0
                assert length in (chunk, size - start), "one chunk, or the last"
        region = tuple(slice(start, start + n) for start, n in zip(block.start, block.values.shape, strict=True))
        assert np.array_equal(prepared.field[block.variable][region], block.values)


def test_a_long_clip_keeps_one_timestep_per_chunk() -> None:
    assert match_tokens.chunks(50, 24, 2 * 256 * 2) == (5, 24)
    assert match_tokens.chunks(3, 24, 2 * 256 * 2) == (3, 24)
    assert match_tokens.chunks(50, 512, 2 * 256 * 2) == (1, 512)
    assert match_tokens.chunks(50, 24, 2 * 4096 * 2) == (1, 24)


def test_a_part_alone_gives_what_it_gives_in_the_whole(prepared: Prepared) -> None:
    spec, names = match_tokens.Spec(keyframe_interval=4, keyframe_offsets=2), tuple(prepared.backbone.layers)
    blocks = match_tokens.run(
        spec, range(3, 4), tokens=match_tokens.StoredTokens(prepared.tokens, names, "cpu"), frames=11, steps=5,
        layers=names, injected_layers=(),
    )  # fmt: skip
    for block in blocks:
        assert block.start[0] == 3 and len(block.values) == 1
        assert np.array_equal(prepared.field[block.variable][3], block.values[0])


def test_stored_tokens_and_the_live_pass_give_one_field(prepared: Prepared) -> None:
    live = SourcePass(
        ExtractSpec(prompt="a source"), prepared.latents, prepared.timesteps, prepared.backbone, lambda block: None
    )
    fused = rematched(prepared, live)
    assert fused.field.keys() == prepared.field.keys()
    for name, values in prepared.field.items():
        assert np.array_equal(fused.field[name], values), name


def test_the_field_of_a_real_clip_keeps_its_schema(prepared: Prepared) -> None:
    schema = prepared.schemas["field"]
    for layer in prepared.layout.layers:
        index = prepared.field[f"index.{layer.name}"]
        assert index.max() < layer.tokens
        assert schema.variables[f"index.{layer.name}"].le == layer.tokens - 1
        assert index.shape == (5, 11, 2, layer.tokens)
        assert (f"source.{layer.name}" in schema.variables) == (layer.name in prepared.layout.injected_layers)
    np.testing.assert_allclose(prepared.field["weights"].sum(-1), 1, atol=1e-6)
    assert set(np.unique(prepared.field["keyframes"])) <= set(prepared.field["support"].tolist())


def test_another_schedule_is_another_field_of_the_same_tokens(prepared: Prepared) -> None:
    by_sigmoid = rematched(prepared, blend="sigmoid")
    assert np.array_equal(by_sigmoid.field["keyframes"], prepared.field["keyframes"])
    assert not np.allclose(by_sigmoid.field["weights"], prepared.field["weights"])
    reseeded = rematched(prepared, seed=1)
    assert not np.array_equal(reseeded.field["keyframes"], prepared.field["keyframes"])


def test_a_frame_too_large_for_a_field_is_one_sentence(prepared: Prepared) -> None:
    layers = (prepared.layout.layers[0].model_copy(update={"tokens": 65537}),)
    layout = prepared.layout.model_copy(update={"layers": layers})
    with pytest.raises(InputError, match="65537") as raised:
        match_tokens.outputs(match_tokens.Spec(), latents=prepared.schemas["latents"], layout=layout)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes", [{"keyframe_interval": 0}, {"keyframe_interval": 65}, {"keyframe_offsets": 0}, {"blend": "none"}]
)
def test_a_schedule_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        match_tokens.Spec(**changes)

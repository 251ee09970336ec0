"""Every rule of a schema is held while writing, and its sentence names artifact, variable, rule and place."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store.errors import SchemaError
from store.rules import broken_rule
from store.schemas import Block, Schema, Variable
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, demo_values, make_demo, stopped


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], at: tuple[int, ...] | None = None) -> Callable:
    def blocks(part: range) -> Iterator[Block]:
        for block in demo_blocks(part):
            if block.variable == name:
                yield Block(name, at if at else block.start, change(block.values.copy()))
            else:
                yield block

    return blocks


def put(where: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[where] = value
        return values

    return change


def without(name: str) -> Callable[[range], Iterator[Block]]:
    return lambda part: (block for block in demo_blocks(part) if block.variable != name)


def renamed(part: range) -> Iterator[Block]:
    yield Block("depth", (0,), np.zeros(2, np.float32))


def twice_the_first_frame(part: range) -> Iterator[Block]:
    for block in demo_blocks(part):
        if block.variable == "count":
            yield Block("count", (part.start,), block.values[:1])
            yield Block("count", (part.start,), block.values[1:])
        else:
            yield block


BROKEN = {
    "finite": (changed("latents", put((1, 1), np.nan)), "latents must be finite.* frame 3, channel4 1 is nan"),
    "infinite": (changed("pts", put((0,), np.inf)), "pts must be finite.* frame 2 is inf"),
    "le": (changed("index", put((1, 2), 5)), "index must be at most 4.* frame 3, token 2 is 5"),
    "ge": (changed("count", put((1,), -1)), "count must be at least 0.* frame 3 is -1"),
    "sum": (changed("weights", put((0, 1), 0.9)), "weights must sum to one over side.* frame 2 is "),
    "half a sum": (changed("weights", lambda v: v[:, :1]), "weights must sum to one over side, so a block must hold"),
    "dtype": (changed("latents", lambda v: v.astype(np.float32)), "latents must be float16, but a block is float32"),
    "axes": (changed("count", lambda v: v[:, None]), "count has 1 dimensions, but a block has 1 offsets and 2 axes"),
    "outside": (changed("rgb", lambda v: v, (2, 1, 0)), "rgb may be written at width 0…3 here.* spans width 1…4"),
    "another part": (changed("count", lambda v: v, (3,)), "count may be written at frame 2…3 here.* frame 3…4"),
    "unknown": (renamed, "depth is not promised; the variables are rgb, index"),
    "left out": (without("pts"), r"pts holds 2 values in frame 2…3, but 2 of them are missing"),
    "written over": (twice_the_first_frame, r"count holds 2 values in frame 2…3, but 1 of them are missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_violation_names_artifact_variable_rule_and_place(store: Store, case: str) -> None:
    blocks, sentence = BROKEN[case]
    with (
        pytest.raises(SchemaError, match=f"^demo {demo_key()}: {sentence}"),
        store.draft(demo_key(), demo_schema()) as draft,
    ):
        draft.write(range(2, 4), blocks(range(2, 4)))
    assert store.find(demo_key()) is None
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        assert draft.missing() == demo_schema().divided()
        raise KeyboardInterrupt


def test_a_violation_leaves_the_other_parts_and_can_be_mended(store: Store) -> None:
    with store.draft(demo_key(), demo_schema()) as draft:
        first, second, third = draft.missing()
        draft.write(first, demo_blocks(first))
        with pytest.raises(SchemaError, match="finite"):
            draft.write(second, changed("latents", put((0, 0), np.nan))(second))
        assert draft.missing() == [second, third]
        draft.write(second, demo_blocks(second))
        draft.write(third, demo_blocks(third))
        draft.attrs["fps"] = 24.0
    assert draft.artifact.digest == make_demo(store, demo_key(steps=51)).digest


def test_a_draft_with_missing_parts_is_not_committed(store: Store) -> None:
    with (
        pytest.raises(SchemaError, match=r"incomplete: 2 of 3 parts were never written, the first is frame 2…3"),
        store.draft(demo_key(), demo_schema()) as draft,
    ):
        draft.write(range(2), demo_blocks(range(2)))
    assert store.find(demo_key()) is None


def test_parts_that_would_share_a_chunk_file_are_refused(store: Store) -> None:
    rgb = demo_schema().variables["rgb"].model_copy(update={"chunks": (3, 4, 3)})
    schema = demo_schema().model_copy(update={"variables": {"rgb": rgb}})
    with (
        pytest.raises(SchemaError, match="rgb has chunks of 3 that straddle parts of 2 frames"),
        store.draft(demo_key(), schema),
    ):
        pass


def test_a_variable_outside_the_division_is_written_by_one_part(store: Store) -> None:
    schema = Schema(
        artifact="mixed",
        variables={
            "a": Variable(dims=("frame",), shape=(4,), dtype="int32", chunks=(2,)),
            "table": Variable(dims=("step",), shape=(3,), dtype="float32", chunks=(3,)),
        },
        parts=("frame", 2),
    )
    table = Block("table", (0,), np.ones(3, np.float32))

    def frames(part: range) -> Block:
        return Block("a", (part.start,), np.arange(2, dtype=np.int32))

    with store.draft(demo_key(), schema) as draft:
        first, second = draft.missing()
        draft.write(first, iter([frames(first), table]))
        with pytest.raises(SchemaError, match="chunk table/c/0 is written by two parts"):
            draft.write(second, iter([frames(second), table]))
        draft.write(second, iter([frames(second)]))
    assert draft.artifact["table"][:].tolist() == [1, 1, 1]


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]), (3, 4), elements=st.sampled_from([0.0, 1, -2, 7, np.nan])
    )
)
def test_bounds_agree_with_numpy(values: np.ndarray) -> None:
    bounded = Variable(dims=("frame", "token"), shape=(3, 4), dtype=str(values.dtype), chunks=(3, 4), ge=-1, le=5)
    finite = bounded.model_copy(update={"ge": None, "le": None, "finite": True})
    assert (broken_rule(bounded, values) is None) == bool(((values >= -1) & (values <= 5)).all())
    assert (broken_rule(finite, values) is None) == bool(np.isfinite(values).all())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([np.float16, np.float32, np.float64]))
def test_rounded_weights_still_sum_to_one(left: list[float], dtype: type) -> None:
    weights = np.stack([np.array(left, dtype), (1 - np.array(left, dtype)).astype(dtype)], axis=1)
    variable = Variable(
        dims=("frame", "side"), shape=weights.shape, dtype=np.dtype(dtype).name, chunks=(1, 2), sums_to_one="side"
    )
    assert broken_rule(variable, weights) is None
    assert "frame 0" in str(broken_rule(variable, weights + dtype(0.25)))


def test_the_first_bad_place_is_counted_from_the_whole_array() -> None:
    values = demo_values("latents", range(2))
    values[1, 3] = np.inf
    said = broken_rule(demo_schema().variables["latents"], values, (4, 0))
    assert said == "must be finite, but frame 5, channel4 3 is inf"

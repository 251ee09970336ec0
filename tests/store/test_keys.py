"""Equal recipes ⇔ equal keys; what has no canonical name is refused."""

import json
import math
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from store.keys import ArtifactKey, UnnameableError, canonical, canonical_json

names = st.text(string.ascii_lowercase + "_é", min_size=1, max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
specs = st.dictionaries(names, plain, max_size=4)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
recipes = st.builds(
    ArtifactKey,
    stage=st.sampled_from(["invert_frames", "match_tokens"]),
    version=st.integers(1, 3),
    spec=specs,
    inputs=st.dictionaries(names, hexes, max_size=2),
)


class OpenSpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    value: object = None


few = st.dictionaries(st.sampled_from("ab"), st.sampled_from([0, 1, 1.0, 0.5, "1", None, [1], [1.0], {"a": 1}]))
look_alikes = st.builds(
    ArtifactKey,
    stage=st.sampled_from("pq"),
    version=st.integers(1, 2),
    spec=few,
    inputs=st.just({}) | st.just({"a": "1"}),
)


@given(look_alikes, look_alikes)
def test_equal_recipes_have_equal_keys_and_other_recipes_other_keys(one: ArtifactKey, other: ArtifactKey) -> None:
    assert (one.hex == other.hex) == (one == other)


@given(recipes)
def test_a_key_survives_json(recipe: ArtifactKey) -> None:
    assert ArtifactKey.model_validate_json(recipe.model_dump_json()).hex == recipe.hex


@given(specs)
def test_the_order_of_fields_is_no_difference(spec: dict[str, object]) -> None:
    turned = dict(reversed(list(spec.items())))
    assert canonical_json(spec) == canonical_json(turned)


@given(plain, plain)
def test_the_text_is_injective(one: object, other: object) -> None:
    same = json.loads(canonical_json(one)) == json.loads(canonical_json(other))
    assume(not same)
    assert canonical_json(one) != canonical_json(other)


@given(st.integers(-(2**53), 2**53))
def test_one_and_one_point_zero_are_one_number(number: int) -> None:
    assert canonical_json({"x": number}) == canonical_json({"x": float(number)})


def test_true_is_not_one() -> None:
    assert canonical_json({"x": True}) != canonical_json({"x": 1})


@settings(max_examples=25)
@given(recipes, hexes, names, scalars)
def test_any_change_moves_the_key(recipe: ArtifactKey, digest: str, name: str, value: object) -> None:
    assume(name not in recipe.spec and name not in recipe.inputs)
    moved = [
        {"stage": "edit_keyframes"},
        {"version": recipe.version + 1},
        {"spec": {**recipe.spec, name: value}},
        {"inputs": {**recipe.inputs, name: digest}},
        *({"spec": {k: v for k, v in recipe.spec.items() if k != gone}} for gone in recipe.spec),
        *({"inputs": {k: v for k, v in recipe.inputs.items() if k != gone}} for gone in recipe.inputs),
    ]
    changed = [ArtifactKey(**{**recipe.model_dump(), **change}).hex for change in moved]
    assert recipe.hex not in changed
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, lambda: 1, {1, 2}, b"bytes", object(), 1j, range(3), {1: "number as a name"}],
    ids=repr,
)
def test_what_has_no_name_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(UnnameableError, match=r"demo\.value\[1\]\.deep"):
        ArtifactKey.of("demo", 1, OpenSpec(value=[0, {"deep": value}]), {})


def test_nested_models_are_named_by_their_fields() -> None:
    assert canonical(OpenSpec(value=OpenSpec(value=(1.0, 2.5)))) == {"value": {"value": [1, 2.5]}}


def test_a_key_shows_its_stage_and_twelve_digits() -> None:
    key = ArtifactKey.of("demo", 1, OpenSpec(), {})
    assert str(key) == f"demo/{key.hex[:12]}"
    assert len(key.hex) == 64

"""Equal inputs give equal numbers as long as a stage's VERSION stands."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.golden import make


@pytest.fixture(scope="module")
def computed() -> dict[str, make.Sampled]:
    return make.compute()


@pytest.mark.parametrize("stage", make.STAGES, ids=make.name_of)
def test_numbers_move_with_the_version_only(stage: ModuleType, computed: dict[str, make.Sampled]) -> None:
    version, reference = make.stored(stage)
    again = "python -m tests.golden.make"
    assert version == stage.VERSION, f"VERSION was raised to {stage.VERSION}: make its reference again, {again}"
    moved = make.difference(computed[make.name_of(stage)], reference)
    assert not moved, f"{moved}: raise {make.name_of(stage)}.VERSION if that is meant, then {again}"


def test_a_small_change_is_seen(computed: dict[str, make.Sampled]) -> None:
    for name, values in computed.items():
        assert make.difference(values, values) == ""
        for variable, numbers in values.items():
            if variable.startswith("index."):
                changed = (numbers + 1) % (numbers.max() + 1) if numbers.max() else numbers + 1
            else:
                changed = numbers + (3 if variable == "rgb" else 2e-3 * abs(numbers).max() + 1e-9)
            assert make.difference(values | {variable: changed}, values), f"{name}: {variable}"

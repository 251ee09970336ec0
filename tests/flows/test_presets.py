"""A preset is a name for ordinary options, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import EditConfig, make_config
from flows.presets import PRESETS, with_preset
from store.errors import InputError
from tests.flows.runs import make_plan


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_options_of_tf_run(name: str) -> None:
    assert set(PRESETS[name]) <= set(EditConfig.model_fields)
    config = make_config(video=Path("clip.mp4"), prompts=("a ball",), **with_preset(name, {}))
    assert {option: getattr(config, option) for option in PRESETS[name]} == PRESETS[name]


def test_balanced_is_what_nobody_asked_for_anything_gets() -> None:
    assert PRESETS["balanced"] == {}


def test_what_was_given_is_put_over_the_preset() -> None:
    assert with_preset("fast", {"feature_reuse": 1, "steps": None, "seed": 0}) == {
        **PRESETS["fast"], "feature_reuse": 1, "seed": 0
    }  # fmt: skip


def test_there_is_no_other_preset() -> None:
    with pytest.raises(InputError, match=r"--preset 'faster': have fast, balanced, best"):
        with_preset("faster", {})


def test_a_preset_shares_what_does_not_depend_on_it(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    plans = {
        name: make_plan(clip, tiny_folder, tmp_path / "store", **{"keyframe_interval": 3, **PRESETS[name]})
        for name in PRESETS
    }
    keys = {name: [node.key.hex for node in plan.nodes] for name, plan in plans.items()}
    assert keys["fast"][:4] == keys["balanced"][:4], "another preset on a known video reuses all four"
    assert keys["best"][:3] == keys["balanced"][:3]
    assert len({tuple(each[4:]) for each in keys.values()}) == len(PRESETS)

"""A latent consistency model through a whole run: few steps, one branch, and no option that wants a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.plan import Plan
from store.errors import InputError
from tests.flows.runs import Executed, edit
from tests.tiny.models import make_lcm, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "lcm", make_lcm)


def test_a_clip_is_edited_in_few_steps(
    plan: Callable[..., Plan], folder: Path, tmp_path: Path, executed: Executed
) -> None:
    planned = plan(model=folder, steps=2, guidance_scale=8.5)
    (keyframes, clip), frames = planned.edits[0], planned.frames
    assert planned.timesteps == (999, 499)
    assert (keyframes.spec.branches_at(0, 2), planned.units(clip)) == (1, 2 * frames), (
        "half of what guidance costs else"
    )
    edit(planned, tmp_path)
    assert (tmp_path / "edit.mp4").is_file()


@pytest.mark.parametrize("option", [{"negative_prompt": "blur"}, {"guidance_rescale": 0.5}])
def test_what_wants_an_unconditional_branch_is_refused(
    plan: Callable[..., Plan], folder: Path, option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(InputError, match=f"no unconditional branch: leave out --{name.replace('_', '-')}"):
        plan(model=folder, steps=2, **option)


def test_a_lora_of_latent_consistency_has_its_timesteps(
    plan: Callable[..., Plan], tmp_path: Path, executed: Executed
) -> None:
    """On an ordinary model, whose own four steps would begin at 751."""
    own, spaced = plan(steps=4), plan(steps=4, timestep_spacing="lcm", guidance_scale=1.0)
    assert (own.timesteps[0], spaced.timesteps) == (751, (999, 759, 499, 259))
    assert own.invert.key.hex != spaced.invert.key.hex
    assert plan(steps=4, timestep_spacing="auto").invert.key.hex == own.invert.key.hex
    edit(spaced, tmp_path)
    assert (tmp_path / "edit.mp4").is_file()

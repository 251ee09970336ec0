"""Region prompts: what another prompt rules is edited as that prompt edits it, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stages.editing.regions import overlaid
from tests.tiny.method import Held, Prepared, edit, edit_at_once, edit_of_keyframes, edit_spec, propagate

TOLERANCE = 2e-4  # of latents: a pass with another number of rows differs in its last bits, and steps amplify them
OPTIONS: list[dict[str, Any]] = [
    {"guidance_start": 0.5, "feature_reuse": 2},
    {"editor": "ddpm", "guidance_stop": 0.5, "guidance_rescale": 0.7},
    {"editor": "sdedit", "guidance_scale": 1.0, "solver": "dpmpp_2m"},
]


def mask_of(prepared: Prepared, left: int, right: int) -> Held:
    """White from column `left` up to `right`, of pixels."""
    mask = np.zeros(prepared.rgb.shape[:3], np.uint8)
    mask[:, :, left:right] = 255
    return {"mask": mask}


def within(prepared: Prepared, *columns: tuple[int, int]) -> Prepared:
    """The same with a region for each (left, right)."""
    return replace(prepared, regions=[mask_of(prepared, *each) for each in columns])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_region_of_everything_is_the_edit_with_its_prompt_and_of_nothing_or_the_same_prompt_is_none(
    short: Prepared, options: dict[str, Any]
) -> None:
    width = short.rgb.shape[2]
    main, other = (edit(short, edit_spec(prompt, **options))["latents"] for prompt in ("an edit", "quite another"))
    spec = edit_spec("an edit", regions=("quite another",), **options)
    assert np.abs(main - other).max() > 50 * TOLERANCE
    assert np.allclose(edit(within(short, (0, width)), spec)["latents"], other, atol=TOLERANCE)
    none = edit_spec("an edit", regions=("quite another", "an edit"), **options)
    assert np.allclose(edit(within(short, (0, 0), (8, 24)), none)["latents"], main, atol=TOLERANCE)


def test_a_region_of_everything_holds_with_a_controlnet(short: Prepared, control: Any) -> None:
    held, settings = short.controlled(control), {"controls": [{"strength": 1.0}]}
    asked = edit_spec("quite another", "controlnet", settings)
    both = edit_spec("an edit", "controlnet", settings, regions=("quite another",))
    whole = within(held, (0, held.rgb.shape[2]))
    assert np.allclose(edit(whole, both)["latents"], edit(held, asked)["latents"], atol=TOLERANCE)


def test_regions_are_laid_over_one_another_and_shares_sum_to_one() -> None:
    """Two that overlap: the later one is whole, the earlier one where that is not, the prompt where none is."""
    noise = [torch.full((1, 4, 1, 4), value) for value in (1.0, 10.0, 100.0)]
    first, second = torch.tensor([0.0, 1, 1, 0.5]), torch.tensor([0.0, 0, 1, 0.5])
    shares = [share.reshape(1, 1, 1, 4) for share in (first, second)]
    found = overlaid(noise[0], list(zip(noise[1:], shares, strict=True)))
    assert found[0, 0, 0].tolist() == [1.0, 10.0, 100.0, 0.5 * 100 + 0.5 * (0.5 * 10 + 0.5)]
    assert torch.equal(
        overlaid(torch.ones(1, 4, 1, 4), [(torch.ones(1, 4, 1, 4), s) for s in shares]), torch.ones(1, 4, 1, 4)
    )


def test_a_new_prompt_in_a_region_changes_that_region_most(short: Prepared) -> None:
    """Of two disjoint regions; convolutions and attention carry a little of it over the border."""
    half = short.rgb.shape[2] // 2
    two, step = within(short, (0, half), (half, 2 * half)), short.latents["clean_latents"].shape[-1] // 2
    base, other = (edit(two, edit_spec("an edit", regions=(each, "right")))["latents"] for each in ("left", "another"))
    moved = np.abs(other - base).mean((0, 1, 2))
    assert moved[:step].mean() > 1.5 * moved[step:].mean()


def test_regions_are_the_same_in_two_stages_at_once_and_in_small_passes(short: Prepared) -> None:
    two, spec = within(short, (0, 12), (20, 40)), edit_spec(regions=("one", "two"))
    apart = propagate(two, spec, edit_of_keyframes(two, spec))["latents"]
    assert np.allclose(apart, edit_at_once(two, spec)[1]["latents"], atol=TOLERANCE)
    assert np.allclose(apart, edit(two.in_passes_of(2), spec)["latents"], atol=TOLERANCE)

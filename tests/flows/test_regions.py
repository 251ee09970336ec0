"""Region prompts of a run: masks are artifacts that no prompt moves, keys of edits without regions are as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.config import make_config
from flows.options import given_of, options_of, read_options
from flows.plan import Plan
from flows.reproduce import plan_again
from flows.videos import KnownVideo
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed, computed, edit

Plans = Callable[..., Plan]


def drawn(file: Path, white: tuple[int, int] = (0, 16)) -> Path:
    """A mask of 32 × 32: white in these columns."""
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (white[0], 0, white[1], 32))
    mask.save(file)
    return file


def test_new_region_prompts_reuse_masks_and_the_sidecar_brings_them_back(
    plan: Plans, store: Store, tmp_path: Path, executed: Executed
) -> None:
    mask = drawn(tmp_path / "mask.png")
    found = {"source_prompt": "a source", "mask": mask, "mask_feather": 0}
    regions = (f"{mask}=a golden ball", "cross-attention:source=a tree = a big one")
    first = plan(**found, regions=regions)
    assert [node.stage for node in first.regions.nodes] == ["find_masks"], "the mask of the edit is the region's too"
    assert first.edits[0][0].spec.regions == ("a golden ball", "a tree = a big one")
    assert "find_masks" in computed(edit(first, tmp_path))
    again, _ = plan_again(next(tmp_path.glob("*.mp4.json")), store, first.runtime)
    assert [node.key for node in again.nodes] == [node.key for node in first.nodes]
    other = edit(plan(**found, regions=(f"{mask}=a silver ball", regions[1])), tmp_path)
    assert computed(other) == ["edit_keyframes", "propagate_tokens"]


def test_without_regions_nothing_of_them_is_in_a_key_and_their_order_is(plan: Plans, tmp_path: Path) -> None:
    one, two = (f"{drawn(tmp_path / name, white)}=x" for name, white in (("a.png", (0, 16)), ("b.png", (8, 32))))
    key = plan().edits[0][0].key
    assert "regions" not in key.spec and not any(role.startswith("region") for role in key.inputs)
    asked = [(), (one,), (two,), (one, two), (two, one), (one, two.replace("=x", "=y"))]
    assert len({plan(regions=each).nodes[-1].key.hex for each in asked}) == len(asked)


def test_a_worker_without_the_masks_knows_the_same_keys(plan: Plans, tmp_path: Path) -> None:
    mask = drawn(tmp_path / "mask.png")
    here = plan(regions=(f"{mask}=a golden ball",))
    mask.unlink()
    known = KnownVideo(key=here.video_key, info=here.video, region_keys=here.regions.keys)
    there = Plan(here.config, here.runtime, here.store, known)
    assert [node.key for node in there.nodes] == [node.key for node in here.nodes]


def test_a_black_region_is_refused_before_the_model_does_anything(
    plan: Plans, tmp_path: Path, executed: Executed
) -> None:
    black = drawn(tmp_path / "black.png", (0, 0))
    with pytest.raises(InputError, match=r"--region .*black in every frame"):
        edit(plan(source_prompt="new", regions=(f"{black}=a golden ball",)), tmp_path)
    assert executed.passed == 0


def test_a_word_that_the_source_does_not_hold_is_said_of_its_region(plan: Plans, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--region cross-attention:cat: the source prompt 'new' does not hold 'cat'"):
        edit(plan(source_prompt="new", regions=("cross-attention:cat=a golden ball",)), tmp_path)


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        (("ball.mp4",), "is not MASK=PROMPT"),
        (("ball.mp4= ",), "is not MASK=PROMPT"),
        (("=a ball",), "is not MASK=PROMPT"),
        (("cross-attention: =a ball",), "names no word"),
        (("a.png=a",) * 9, "--region .* at most 8"),
        (("a.png=a\x1bb",), "control characters"),
        (("a.png=" + "a" * 2001,), "2000 are the most"),
    ],
)
def test_what_is_no_region_is_one_sentence(regions: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        make_config(video=tmp_path / "clip.mp4", prompts=("one",), regions=regions)
    assert "\n" not in str(raised.value)


def test_a_mask_that_is_not_there_is_named_with_its_region(plan: Plans) -> None:
    with pytest.raises(InputError, match=r"--region 'none.png=a ball': none.png does not exist"):
        plan(regions=("none.png=a ball",))


def test_regions_travel_as_options(tmp_path: Path) -> None:
    given: dict[str, Any] = {"region": ["a.png=x", "cross-attention:dog=y"]}
    assert given_of(options_of(given)) == given
    (tmp_path / "o.toml").write_text('regions = ["a.png=x", "cross-attention:dog=y"]')
    assert read_options(tmp_path / "o.toml")["regions"] == (f"{tmp_path / 'a.png'}=x", "cross-attention:dog=y")

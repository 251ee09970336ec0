"""Local edits of a run: the mask is an artifact that all prompts share, named by what is drawn or by the word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.config import make_config
from flows.plan import Plan
from flows.reproduce import plan_again
from store.errors import InputError
from store.store import Store
from tests.flows.runs import Executed, computed, edit
from tests.tiny.segmenters import save_sam

Plans = Callable[..., Plan]


def drawn(file: Path, left: int = 16) -> Path:
    """A mask of 32 × 32: white from column `left` on."""
    values = np.zeros((32, 32), np.uint8)
    values[:, left:] = 255
    Image.fromarray(values).save(file)
    return file


def test_two_prompts_share_a_mask_and_the_source_is_outside_of_it(
    plan: Plans, tmp_path: Path, executed: Executed
) -> None:
    mask = {"mask": drawn(tmp_path / "mask.png"), "mask_feather": 0}
    first = edit(plan(**mask, prompts=("one",)), tmp_path)
    again = edit(plan(**mask, prompts=("two",)), tmp_path)
    assert "read_masks" in computed(first)
    assert computed(again) == ["edit_keyframes", "propagate_tokens"]
    latents, edited = (
        next(use.artifact for use in again.uses if use.node.stage == stage)
        for stage in ("invert_frames", "propagate_tokens")
    )
    clean, ours = latents["clean_latents"][:], edited["latents"][:]
    column = clean.shape[-1] // 2
    assert np.allclose(ours[..., :column], clean[..., :column], atol=1e-5)
    assert np.abs(ours[..., column:] - clean[..., column:]).max() > 1e-2


def test_a_mask_is_named_by_its_bytes_not_by_its_path(plan: Plans, tmp_path: Path) -> None:
    one = plan(mask=drawn(tmp_path / "one.png")).nodes[-1].key
    assert plan(mask=drawn(tmp_path / "other.png")).nodes[-1].key == one
    assert plan(mask=drawn(tmp_path / "third.png", left=8)).nodes[-1].key != one
    folder = tmp_path / "folder"
    folder.mkdir()
    drawn(folder / "a.png")
    assert plan(mask=folder).nodes[-1].key == one, "one picture is one picture"
    assert plan().nodes[-1].key != one


def test_a_feather_of_no_mask_is_said_to_show_nowhere(plan: Plans, tmp_path: Path) -> None:
    said = "--mask-feather shows nowhere: there is no --mask, --mask-from or --region"
    drawn(tmp_path / "mask.png")
    assert said in plan(mask_feather=3).notes
    for mask in ({"mask": tmp_path / "mask.png"}, {"regions": (f"{tmp_path / 'mask.png'}=a ball",)}):
        assert said not in plan(**mask, mask_feather=3).notes


def test_pictures_are_kept_where_there_is_a_mask_and_no_other_key_knows_of_it(plan: Plans, tmp_path: Path) -> None:
    keyframes, _ = plan(mask=drawn(tmp_path / "mask.png")).edits[0]
    for name in ("pictures_kept", "border_edited"):
        assert getattr(keyframes.spec, name)
        assert keyframes.key.spec[name] is True
        assert name not in plan().edits[0][0].key.spec


def test_a_mask_found_by_a_word_knows_the_prompt_and_the_model(
    plan: Plans, kl_folder: Path, tmp_path: Path, executed: Executed
) -> None:
    found = {"source_prompt": "a source", "mask_from": "cross-attention:source"}
    result = edit(plan(**found), tmp_path)
    assert "find_masks" in computed(result)
    mask = next(use.artifact for use in result.uses if use.node.stage == "find_masks")
    assert mask.schema.artifact == "mask"
    keys = {
        plan(**options).mask.key.hex  # type: ignore[union-attr]
        for options in (found, found | {"model": str(kl_folder)}, found | {"source_prompt": "the source"})
    }
    assert len(keys) == 3


def test_a_cached_video_is_edited_within_a_mask_of_the_store(plan: Plans, store: Store, tmp_path: Path) -> None:
    """As the form of edit-cached asks for it, where neither the video nor the mask is there any more."""
    from flows.deployed import cached_plan
    from flows.forms import CachedEdit

    file = drawn(tmp_path / "mask.png")
    first = plan(mask=file, mask_feather=3)
    edit(first, tmp_path)
    assert first.mask is not None
    key = first.mask.key.hex

    def asked(mask: str, **more: Any) -> Plan:
        wanted = CachedEdit(video=first.match.key.hex[:8], prompts=("another",), mask=mask, **more)
        return cached_plan(wanted, store.place, first.runtime)

    by_file = asked(str(file), mask_feather=3)
    file.unlink()
    by_key = asked(key[:10])
    assert by_key.mask == by_file.mask == first.mask and by_key.config.mask == file
    assert by_key.edits == by_file.edits
    assert computed(edit(by_key, tmp_path)) == ["edit_keyframes", "propagate_tokens"]
    for mask, more, said in (
        ("0123abcd", {}, "is no file on this machine, and no mask of"),
        (key[:10], {"mask_feather": 5}, "with another feather"),
    ):
        with pytest.raises(InputError, match=said):
            asked(mask, **more)


def test_a_mask_found_at_a_point_is_keyed_by_the_point_and_the_models_bytes(
    plan: Plans, store: Store, tmp_path: Path, executed: Executed
) -> None:
    asked = {"mask_from": f"sam:{save_sam(tmp_path / 'sam')}@0.5,0.5"}
    first = plan(**asked)
    assert "segment_masks" in computed(edit(first, tmp_path))
    again, _ = plan_again(next(tmp_path.glob("*.mp4.json")), store, first.runtime)
    assert again.nodes[-1].key == first.nodes[-1].key
    moved = save_sam(tmp_path / "elsewhere")
    same = plan(mask_from=f"sam:{moved}@.50,0.5")
    assert same.nodes[-1].key == first.nodes[-1].key, "the same bytes in another folder"
    others = [plan(mask_from=f"sam:{moved}@0.5,0.6"), plan(mask_from=f"sam:{save_sam(moved, seed=1)}@0.5,0.5")]
    assert len({each.nodes[-1].key.hex for each in (first, *others)}) == 3
    with pytest.raises(InputError, match=r"no config\.json"):
        plan(mask_from=f"sam:{tmp_path / 'none'}@0.5,0.5")


def test_a_local_edit_is_made_again_from_its_sidecar(plan: Plans, store: Store, tmp_path: Path) -> None:
    first = plan(mask=drawn(tmp_path / "mask.png"))
    edit(first, tmp_path)
    sidecar = next(tmp_path.glob("*.mp4.json"))
    again, _ = plan_again(sidecar, store, first.runtime)
    assert again.nodes[-1].key == first.nodes[-1].key
    drawn(tmp_path / "mask.png", left=8)
    with pytest.raises(InputError):
        plan_again(sidecar, store, first.runtime)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": "m.png", "mask_from": "cross-attention:dog"}, "both say what is edited"),
        ({"mask_from": "dog"}, "is not cross-attention:WORD"),
        ({"mask_from": "cross-attention: "}, "is not cross-attention:WORD"),
        ({"mask_from": "sam:folder"}, "not sam:FOLDER@X,Y"),
        ({"mask_from": "sam:folder@0.5"}, "not sam:FOLDER@X,Y"),
        ({"mask_from": "sam:folder@0.5,1.2"}, "a point is off the picture"),
        ({"mask_feather": -1}, "--mask-feather -1"),
        ({"mask_from": "cross-attention:dog", "prompt_weighting": True}, "leave out --prompt-weighting"),
        ({"regions": ("cross-attention:dog=a cat",), "prompt_weighting": True}, "leave out --prompt-weighting"),
    ],
)
def test_what_makes_no_mask_is_one_sentence(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        make_config(video=tmp_path / "clip.mp4", prompts=("one",), **options)
    assert "\n" not in str(raised.value)

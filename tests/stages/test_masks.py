"""Local edits: masks as they are drawn and found, and the source that is put back outside of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pocket
from pocket.truth import read_truth
from pocket.world import SHAPES, Scene, caption, render, sample_clip
from stages import find_masks, read_masks
from stages.backbones.stable_diffusion import Runtime, StableDiffusion, load
from stages.editing.decoding import blended
from stages.editing.masking import edited_in_latents, in_latents, put_back, softened
from stages.media.picture_folders import read_rgba
from store.errors import InputError
from tests.stages.clips import write_clip
from tests.tiny.method import Prepared, edit, edit_at_once, edit_of_keyframes, edit_spec, prepare, propagate

EXAMPLES = Path(__file__).parents[2] / "examples"


def read(mask: Path, frames: int = 3, aspect: float = 1.5, **spec: Any) -> np.ndarray[Any, Any]:
    asked = read_masks.Spec(**{"width": 24, "height": 16, "feather": 0} | spec)
    blocks = read_masks.run(asked, range(1), frames=frames, mask=mask, aspect=aspect)
    return np.concatenate([block.values for block in blocks])


def picture(file: Path, grey: int, mode: str = "L") -> Path:
    """A picture of 48 × 32 whose right half is black."""
    values = np.full((32, 48), grey, np.uint8)
    values[:, 24:] = 0
    Image.fromarray(values).convert(mode).save(file)
    return file


# as they are drawn


def test_a_picture_is_the_mask_of_every_frame(tmp_path: Path) -> None:
    masks = read(picture(tmp_path / "mask.png", 255), frames=20)
    assert masks.shape == (20, 16, 24)
    assert (masks[:, :, :12] == 255).all()
    assert (masks[:, :, 12:] == 0).all()


def test_what_is_transparent_is_kept(tmp_path: Path) -> None:
    rgba = np.full((32, 48, 4), 255, np.uint8)
    rgba[:, :24, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    masks = read(tmp_path / "mask.png")
    assert (masks[:, :, :12] == 0).all()
    assert (masks[:, :, 12:] == 255).all()


@pytest.mark.parametrize("name", ["depth.png", "depth.tif"])
def test_pictures_of_16_bits_keep_their_greys(tmp_path: Path, name: str) -> None:
    """As depth is written; Pillow makes white of all that is above 255."""
    greys = np.tile(np.arange(0, 65536, 257, np.uint16), (2, 1))
    Image.fromarray(greys).save(tmp_path / name)
    assert np.array_equal(read_rgba(tmp_path / name, "--mask")[0, :, 0], np.arange(256))


def test_pictures_that_are_several_or_have_no_white_are_one_sentence(tmp_path: Path) -> None:
    grey = Image.new("L", (48, 32), 200)
    grey.save(tmp_path / "moving.png", save_all=True, append_images=[Image.new("L", (48, 32), 9)])
    with pytest.raises(InputError, match=r"moving\.png holds 2 pictures; save each"):
        read(tmp_path / "moving.png")
    grey.convert("F").save(tmp_path / "depth.tif")
    with pytest.raises(InputError, match=r"depth\.tif has 32 bits a pixel"):
        read(tmp_path / "depth.tif")


def test_hidden_files_of_a_folder_are_no_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 255)
    (tmp_path / "._1.png").write_bytes(b"what macOS leaves beside it")
    assert read_masks.mask_files(tmp_path) == [tmp_path / "1.png"]


def test_pictures_of_a_folder_and_frames_of_a_video_are_those_of_the_frames_edited(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(8):
        picture(folder / f"{number:02}.png", 100 + 10 * number)
    (folder / "notes.txt").write_text("not a picture")
    edited = read(folder, frames=3, start=1, step=3)
    everyone = read(folder, frames=8)
    assert np.array_equal(edited, everyone[[1, 4, 7]])
    assert len({int(mask[0, 0]) for mask in everyone}) == 8
    clip = write_clip(tmp_path / "mask.mp4", frames=8, width=48, height=32)
    assert np.array_equal(read(clip, frames=3, start=1, step=3), read(clip, frames=8)[[1, 4, 7]])


def test_noise_that_a_codec_leaves_is_no_mask(tmp_path: Path) -> None:
    values = np.full((32, 48), 9, np.uint8)
    values[:, :24] = 247
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert set(np.unique(read(tmp_path / "mask.png"))) == {0, 255}


def test_masks_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(2):
        picture(folder / f"{number}.png", 255)
    (tmp_path / "empty").mkdir()
    faults = {
        tmp_path / "text.png": "cannot be read as a picture",
        folder: "has pictures for 2 of the 3 frames",
        tmp_path / "empty": "holds no picture",
        tmp_path / "none.png": "does not exist",
        picture(tmp_path / "black.png", 0): "black in every frame",
    }
    for place, said in faults.items():
        with pytest.raises(InputError, match=said) as raised:
            read(place)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="another shape"):
        read(picture(tmp_path / "mask.png", 255), aspect=1.0)


@given(feather=st.integers(0, 12), side=st.integers(16, 24))
def test_the_soft_edge_is_as_wide_as_asked_and_lies_on_the_border(feather: int, side: int) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20 : 20 + side, 20 : 20 + side] = 255
    row = softened(mask, feather)[20 + side // 2]
    soft = np.flatnonzero((row > 0) & (row < 255))
    half = feather // 2 + 1
    assert all(min(abs(place - 20), abs(place - 20 - side)) <= half for place in soft)
    assert len(soft) == 2 * feather if feather % 2 == 0 else len(soft) in (2 * feather, 2 * (feather - 1))
    assert row[20 + side // 2] == 255


# what is put back


@given(share=st.floats(0, 1))
def test_the_share_of_a_latent_pixel_is_the_share_of_its_pixels(share: float) -> None:
    edited = round(share * 16)
    mask = np.zeros(16, np.uint8)
    mask[:edited] = 255
    own = in_latents(mask.reshape(1, 4, 4), 1, 1)
    assert float(own) == pytest.approx(edited / 16, abs=1e-6)
    one, other = torch.ones(1, 4, 1, 1), torch.zeros(1, 4, 1, 1)
    assert put_back(one, other, own).flatten().tolist() == pytest.approx([edited / 16] * 4, abs=1e-6)


@given(share=st.integers(0, 16))
def test_a_latent_pixel_half_in_the_mask_is_edited_whole(share: int) -> None:
    mask = np.zeros(16, np.uint8)
    mask[:share] = 255
    own = float(edited_in_latents(mask.reshape(1, 4, 4), 1, 1))
    assert own == pytest.approx(min(1, share / 8), abs=1e-6)


def masked(prepared: Prepared, left: int) -> Prepared:
    """The same with a mask whose pixels from `left` on are edited."""
    mask = np.zeros(prepared.rgb.shape[:3], np.uint8)
    mask[:, :, left:] = 255
    return replace(prepared, mask={"mask": mask})


@pytest.mark.parametrize("options", [{}, {"editor": "sdedit"}, {"solver": "dpmpp_2m"}, {"guidance_scale": 1.0}])
def test_outside_of_the_mask_the_edit_is_the_source_and_inside_it_is_not(
    prepared: Prepared, options: dict[str, Any]
) -> None:
    half = prepared.rgb.shape[2] // 2
    clean = prepared.latents["clean_latents"]
    latents = edit(masked(prepared, half), edit_spec(**options))["latents"]
    column = half // (prepared.rgb.shape[2] // clean.shape[-1])
    assert np.allclose(latents[..., :column], clean[..., :column], atol=1e-5)
    assert np.abs(latents[..., column:] - clean[..., column:]).max() > 0.1


def test_an_edit_reaches_over_the_latent_pixels_on_the_border(short: Prepared) -> None:
    pixel = short.rgb.shape[2] // short.latents["clean_latents"].shape[-1]
    straddled = edit(masked(short, 4 * pixel + pixel // 2), edit_spec(border_edited=True))["latents"]
    aligned = edit(masked(short, 4 * pixel), edit_spec())["latents"]
    assert np.array_equal(straddled, aligned)
    mixed = edit(masked(short, 4 * pixel + pixel // 2), edit_spec())["latents"]
    assert not np.array_equal(mixed, aligned)


def test_a_mask_of_everything_changes_nothing_and_one_of_nothing_is_the_source(short: Prepared) -> None:
    spec = edit_spec()
    everywhere = edit(masked(short, 0), spec)["latents"]
    assert np.array_equal(everywhere, edit(short, spec)["latents"])
    nowhere = edit(masked(short, short.rgb.shape[2]), spec)["latents"]
    assert np.allclose(nowhere, short.latents["clean_latents"], atol=1e-5)


def test_a_local_edit_is_the_same_in_two_stages_and_at_once(prepared: Prepared) -> None:
    local, spec = masked(prepared, 16), edit_spec()
    keyframes = edit_of_keyframes(local, spec)
    apart = propagate(local, spec, keyframes)["latents"]
    together = edit_at_once(local, spec)[1]["latents"]
    assert np.abs(apart - together).max() < 2e-4


@pytest.mark.parametrize("at_once", [False, True])
def test_outside_of_the_mask_pictures_are_the_decoded_source(prepared: Prepared, at_once: bool) -> None:
    local, spec = masked(prepared, 16), edit_spec(pictures_kept=True)
    keyframes, edited = edit_at_once(local, spec) if at_once else (edit_of_keyframes(local, spec), edit(local, spec))
    source = prepared.backbone.decode(torch.from_numpy(prepared.latents["clean_latents"]))
    alone = prepared.backbone.decode(torch.from_numpy(edited["latents"]))
    assert np.array_equal(edited["rgb"][:, :, :16], source[:, :, :16])
    assert np.abs(edited["rgb"][:, :, 16:].astype(int) - alone[:, :, 16:]).max() <= 1
    assert (edited["rgb"][:, :, 16:] != source[:, :, 16:]).any()
    assert np.array_equal(keyframes["rgb"][:, :, :16], source[prepared.field["support"]][:, :, :16])


def test_without_it_the_decoder_carries_the_edit_over_the_border(prepared: Prepared) -> None:
    source = prepared.backbone.decode(torch.from_numpy(prepared.latents["clean_latents"]))
    shown = edit(masked(prepared, 16), edit_spec())["rgb"]
    assert (shown[:, :, :16] != source[:, :, :16]).any()


@given(share=st.integers(0, 255), edited=st.integers(0, 255), source=st.integers(0, 255))
def test_pictures_are_mixed_as_the_mask_says(share: int, edited: int, source: int) -> None:
    one, other = (np.full((1, 2, 2, 3), level, np.uint8) for level in (edited, source))
    mixed = blended(one, other, np.full((1, 2, 2), share, np.uint8))
    assert np.abs(mixed - (source + (edited - source) * share / 255)).max() <= 0.5 + 1e-4


# found by a word


def found_by(known: Prepared, prompt: str, words: str, **spec: Any) -> np.ndarray[Any, Any]:
    """mask (frame, height, width) uint8 of the words in the source prompt, without a soft edge."""
    height, width = known.rgb.shape[1:3]
    asked = find_masks.Spec(prompt=prompt, words=words, **{"width": width, "height": height, "feather": 0} | spec)
    blocks = find_masks.run(
        asked, range(1), frames={"rgb": known.rgb}, latents=known.latents, timesteps=known.timesteps, trained=1000,
        backbone=known.backbone,
    )  # fmt: skip
    return np.concatenate([block.values for block in blocks if block.variable == "mask"])


def overlap(found: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> float:
    """Intersection over union."""
    return float((found & true).sum() / (found | true).sum())


@pytest.fixture(scope="module")
def pocket_model() -> StableDiffusion:
    return load(str(pocket.model_folder()), Runtime())


def scenes_of(seed: int, size: float) -> Scene:
    """A clip that nothing was tuned on, its object `size` times as large as the model has seen any."""
    scenes = sample_clip(16, torch.Generator().manual_seed(seed))[torch.arange(0, 16, 4)]
    return replace(scenes, scale=scenes.scale * size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "size", "words"),
    [("star", 1, None), (9000, 1, "checkered ring"), (9001, 0.6, None)],
)
def test_the_object_is_found_by_its_name(
    pocket_model: StableDiffusion, place: str | int, size: float, words: str | None
) -> None:
    """Against the world's exact mask, frame by frame: no larger than the object, and the object not left out."""
    if isinstance(place, str):
        known = read_truth(EXAMPLES / f"{place}.mp4")
        assert known is not None
        scenes = known[torch.arange(0, 16, 4)]
    else:
        scenes = scenes_of(place, size)
    shown, prompt = render(scenes, 64), caption(scenes)
    rgb = (shown.rgb * 255).round().byte().numpy()
    clip = prepare(pocket_model, pocket.model_folder(), rgb, prompt=prompt, steps=10)
    found = found_by(clip, prompt, words or SHAPES[int(scenes.shape[0])]) > 127
    for own, true in zip(found, shown.mask.numpy(), strict=True):
        assert overlap(own, true) > 0.85
        assert (own & true).sum() / true.sum() > 0.88


def test_a_word_that_the_prompt_does_not_hold_is_one_sentence(prepared: Prepared) -> None:
    with pytest.raises(InputError, match=r"'a source' does not hold 'dog'.*--source-prompt"):
        found_by(prepared, "a source", "dog")


@given(level=st.floats(1e-4, 1), raised=st.floats(0, 50), seed=st.integers(0, 9))
def test_variation_is_that_of_the_word_that_stands_for_the_thing(level: float, raised: float, seed: int) -> None:
    """Of two words the first is attended to alike everywhere, the second more in one quarter."""
    attended = torch.full((3, 2, 8, 8), level)
    attended[:, 1, :4, :4] *= 1 + raised
    own = find_masks.variation(attended)
    assert own.shape == (3,)
    expected = raised * (3 / 16) ** 0.5 / (1 + raised / 4)
    assert own == pytest.approx([expected] * 3, rel=1e-3, abs=1e-5)


def test_how_unevenly_a_word_is_attended_to_is_kept_per_frame(prepared: Prepared) -> None:
    height, width = prepared.rgb.shape[1:3]
    asked = find_masks.Spec(prompt="a source", words="source", width=width, height=height)
    first = next(find_masks.run(
        asked, range(1), frames={"rgb": prepared.rgb}, latents=prepared.latents, timesteps=prepared.timesteps,
        trained=1000, backbone=prepared.backbone,
    ))  # fmt: skip
    assert first.variable == "variation"
    assert first.values.shape == (len(prepared.rgb),) and first.values.dtype == np.float32
    assert (first.values > 0).all()


def test_frames_per_pass_finds_no_other_mask(prepared: Prepared) -> None:
    found = [found_by(each, "a source", "source") for each in (prepared, prepared.in_passes_of(3))]
    assert found[0].shape == prepared.rgb.shape[:3]
    assert (found[0] != found[1]).mean() < 0.01
    assert 0 < (found[0] > 0).mean() < 1


@pytest.mark.parametrize(("height", "width"), [(512, 512), (360, 640)])
def test_large_frames_have_masks_of_their_size(prepared: Prepared, height: int, width: int) -> None:
    """As Stable Diffusion has them: attention of at most 32 × 32 tokens, sides that are no multiple of its grids."""
    rng, size = np.random.default_rng(0), (height // 8, width // 8)
    rgb = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    steps = len(prepared.timesteps)
    latents = {"latents": rng.standard_normal((steps, 1, 4, *size), dtype=np.float32).astype(np.float16)}
    found = found_by(replace(prepared, rgb=rgb, latents=latents), "a source", "source")
    assert found.shape == (1, height, width)
    assert 0 < (found > 0).mean() < 1
    grids = set(find_masks._layers(prepared.backbone, size).values())
    assert max(grid[0] * grid[1] for grid in grids) <= find_masks.MOST_TOKENS


@given(st.lists(st.integers(0, 999), min_size=1, max_size=60, unique=True))
def test_attention_is_read_at_few_timesteps_of_any_schedule(timesteps: list[int]) -> None:
    noisiest_first = sorted(timesteps, reverse=True)
    words, likes = find_masks.steps_read(noisiest_first, 1000)
    assert 1 <= len(words) <= find_masks.MOST_WORD_TIMESTEPS
    assert 1 <= len(likes) <= find_masks.MOST_LIKENESS_TIMESTEPS
    low = [timestep for timestep in timesteps if 20 <= timestep <= 200]
    assert {noisiest_first[step] for step in likes} <= set(low or [min(timesteps)])


@given(left=st.integers(8, 40), top=st.integers(8, 40), size=st.integers(20, 48))
def test_the_border_is_that_of_the_colours(left: int, top: int, size: int) -> None:
    """A rectangle of another colour, known only as averages over squares of 8 pixels."""
    true = np.zeros((96, 96), bool)
    true[top : top + size, left : left + size] = True
    picture = np.where(true[..., None], np.uint8([200, 60, 40]), np.uint8([60, 120, 200])).astype(np.uint8)
    coarse = cv2.resize(true.astype(np.float32), (12, 12), interpolation=cv2.INTER_AREA)
    plain = cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_LINEAR) > 0.5
    guided = find_masks.guided_by(picture, coarse) > 0.5
    assert overlap(guided, true) > 0.93
    assert overlap(guided, true) >= overlap(plain, true)


@given(grey=st.integers(0, 255), seed=st.integers(0, 9))
def test_a_picture_without_borders_makes_none(grey: int, seed: int) -> None:
    coarse = np.random.default_rng(seed).random((8, 8), dtype=np.float32)
    guided = find_masks.guided_by(np.full((64, 64, 3), grey, np.uint8), coarse)
    assert coarse.min() - 1e-2 < guided.min() <= guided.max() < coarse.max() + 1e-2


@given(row=st.integers(0, 11), column=st.integers(0, 11), grey=st.integers(0, 255))
def test_what_the_filter_would_blur_away_is_not_lost(row: int, column: int, grey: int) -> None:
    """One token, on a picture that says nothing of where it ends."""
    coarse = np.zeros((12, 12), np.float32)
    coarse[row, column] = 1
    found = find_masks.parted(np.full((96, 96, 3), grey, np.uint8), coarse, 0.5) > 0
    assert found[8 * row + 4, 8 * column + 4]
    assert 16 <= found.sum() <= 144

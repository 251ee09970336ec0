"""LoRAs and textual inversion: what they do to the weights and to the key, and what is said of wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.models import find_model
from stages.backbones.adapters import Adapters
from stages.backbones.stable_diffusion import Runtime, load
from stages.backbones.weighting import check_weighted, unweighted
from store.errors import InputError
from store.store import Store

FAMILIES = ("tiny_folder", "sdxl_folder")
LAYER = "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def lora_for(folder: Path, file: Path, seed: int = 0) -> Path:
    """A LoRA of rank 2 on queries of the UNet and attention of its text encoder, written as diffusers writes one."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = load(str(folder), Runtime()).pipeline
    torch.manual_seed(seed)
    layers = {}
    for part, names in (("unet", ["to_q"]), ("text_encoder", ["q_proj", "out_proj"])):
        model = getattr(pipeline, part)
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=names))
        for weights in model.parameters():
            if weights.requires_grad:
                torch.nn.init.normal_(weights, std=0.3)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return file


def loaded(folder: Path, *loras: str, embeddings: tuple[str, ...] = ()) -> Any:
    return load(str(folder), Runtime(), Adapters.read(loras, embeddings))


def added(file: Path, part: str, layer: str) -> torch.Tensor:
    """B · A of one layer, as the file holds them."""
    tensors = load_file(file)
    down, up = (next(v for name, v in tensors.items() if name.startswith(f"{part}.{layer}.") and side in name)
                for side in ("lora_A", "lora_B"))  # fmt: skip
    return up @ down


def test_loras_are_added_by_their_weights(folder: Path, tmp_path: Path) -> None:
    one, other = lora_for(folder, tmp_path / "one.safetensors"), lora_for(folder, tmp_path / "other.safetensors", 1)
    plain, adapted = load(str(folder), Runtime()), loaded(folder, f"{one}:0.7", f"{other}:-0.4")
    assert list(dict(adapted.unet.named_modules())) == list(dict(plain.unet.named_modules()))
    before, after = plain.unet.state_dict(), adapted.unet.state_dict()
    expected = 0.7 * added(one, "unet", LAYER) - 0.4 * added(other, "unet", LAYER)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(after[f"{LAYER}.weight"] - before[f"{LAYER}.weight"], expected, rtol=1e-4, atol=1e-5)
    moved = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert moved and all(name.endswith("to_q.weight") for name in moved)
    prompts = ["a red ball"]
    assert not torch.allclose(adapted.encode_text(prompts), plain.encode_text(prompts), atol=1e-3)


def test_a_lora_as_kohya_writes_it_is_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    """Its own names, and a scale of its own: alpha over rank, here a half."""
    file, theirs = lora_for(tiny_folder, tmp_path / "one.safetensors"), {}
    for name, values in load_file(file).items():
        part, _, layer = name.partition(".")
        layer, side = layer.removesuffix(".weight").rsplit(".", 1)
        layer = f"text_model.{layer.removeprefix('text_model.')}" if part == "text_encoder" else layer
        written = f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}"
        theirs[f"{written}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = values
        theirs[f"{written}.alpha"] = torch.tensor(1.0)
    save_file(theirs, tmp_path / "kohya.safetensors")
    halved, kohya = loaded(tiny_folder, f"{file}:0.5"), loaded(tiny_folder, f"{tmp_path / 'kohya.safetensors'}")
    for part in ("unet", "text_encoder"):
        ours, before = (getattr(model.pipeline, part).state_dict() for model in (halved, kohya))
        torch.testing.assert_close(ours, before)
    assert not torch.equal(halved.encode_text(["a ball"]), load(str(tiny_folder), Runtime()).encode_text(["a ball"]))


def test_a_lora_of_which_most_layers_are_anothers_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """diffusers leaves them out without a word."""
    whole = load_file(lora_for(tiny_folder, tmp_path / "one.safetensors"))
    mine = {name: values for name, values in whole.items() if name.startswith(f"unet.{LAYER}.")}
    theirs = {f"unet.block_{n}.to_q.{name.split('.to_q.')[1]}": v.clone() for n in range(2) for name, v in mine.items()}
    save_file(mine | theirs, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is of 3 layers, of which this model has 1; give one that was trained on"):
        loaded(tiny_folder, str(tmp_path / "other.safetensors"))


def test_an_adapter_of_pefts_own_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.mid_block.to_q.lora_A.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="is an adapter as peft saves it"):
        Adapters.read([str(file)], [])


def test_a_learnt_word_is_its_vectors(folder: Path, tmp_path: Path) -> None:
    plain = load(str(folder), Runtime())
    widths = {"clip_l": plain.pipeline.text_encoder.config.hidden_size}
    if hasattr(plain.pipeline, "text_encoder_2"):
        widths["clip_g"] = plain.pipeline.text_encoder_2.config.hidden_size
    vectors = {part: torch.randn(2, width) for part, width in widths.items()}
    file = tmp_path / "<cat>.safetensors"
    save_file(vectors if len(vectors) > 1 else {"emb_params": vectors["clip_l"]}, file)
    adapted = loaded(folder, embeddings=(str(file),))
    table = adapted.pipeline.text_encoder.get_input_embeddings().weight
    ids = adapted.pipeline.tokenizer.convert_tokens_to_ids(["<cat>", "<cat>_1"])
    torch.testing.assert_close(table[ids], vectors["clip_l"])
    said, unsaid = adapted.encode_text(["a <cat>", "a dog"]), plain.encode_text(["a <cat>", "a dog"])
    assert not torch.allclose(said[0], unsaid[0], atol=1e-3)
    torch.testing.assert_close(said[1], unsaid[1])
    room = adapted.pipeline.tokenizer.model_max_length - 2
    assert adapted.cut_from("<cat> " + "x" * (room - 2)) == "", "a word of two vectors takes two places"
    assert adapted.cut_from("<cat> " + "x" * (room - 1)) == "x"


def test_the_key_is_the_bytes_the_weights_and_the_words(tiny_folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lora, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"unet.lora_A.weight": torch.zeros(1)}, lora)
    save_file({"unet.lora_A.weight": torch.ones(1)}, other)
    word = tmp_path / "word.safetensors"
    save_file({"<cat>": torch.zeros(24)}, word)

    def key(loras: tuple[str, ...] = (), embeddings: tuple[str, ...] = (), weighting: bool = False) -> str:
        return find_model(str(tiny_folder), store, adapters=Adapters.read(loras, embeddings, weighting)).key

    keys = [
        key(), key((f"{lora}",)), key((f"{lora}:0.5",)), key((f"{other}",)), key((f"{lora}", f"{other}")),
        key((), (f"{word}",)), key((), (f"{word}:cat",)), key((f"{lora}",), (f"{word}",)),
        key(weighting=True),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == find_model(str(tiny_folder), store).key
    assert key((f"{lora}:1.0",)) == key((f"{lora}",))
    renamed = lora.rename(tmp_path / "renamed.safetensors")
    assert key((f"{renamed}",)) == keys[1], "no name enters a key"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [('("a", "b").blend(1)', "cannot be read"), ("a cat.swap(dog)", r"\.swap\(\) is not supported")],
)
def test_a_weighted_prompt_that_cannot_be_read(prompt: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        check_weighted("a (red)1.2 ball", prompt)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (red)1.3 ball on grass++", "a red ball on grass"),
        ("a red ball", "a red ball"),
        ("", ""),
        ('("a", "b").and()', "a, b"),
        ('("a", "b c").blend(1, 0.5)', "a, b c"),
    ],
)
def test_the_words_of_a_weighted_prompt(prompt: str, words: str) -> None:
    assert unweighted(prompt) == words


def no_lora(folder: Path) -> str:
    save_file({"weight": torch.zeros(1)}, folder / "f.safetensors")
    return f"{folder / 'f.safetensors'}"


def damaged(folder: Path) -> str:
    (folder / "f.safetensors").write_bytes(b"\xff" * 100)
    return f"{folder / 'f.safetensors'}"


def pickled(folder: Path) -> str:
    (folder / "f.pt").write_bytes(b"")
    return f"{folder / 'f.pt'}"


def lora_weighing(weight: str) -> Callable[[Path], str]:
    def made(folder: Path) -> str:
        save_file({"unet.lora_A.weight": torch.zeros(1)}, folder / "f.safetensors")
        return f"{folder / 'f.safetensors'}:{weight}"

    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: str(folder / "none.safetensors"), "is not there"),
        (no_lora, "holds no LoRA"),
        (damaged, "is damaged"),
        (pickled, "is no .safetensors file"),
        (lora_weighing("much"), "'much' is no weight"),
        (lora_weighing("nan"), "between -10 and 10"),
        (lora_weighing("11"), "between -10 and 10"),
    ],
)
def test_a_file_that_is_no_lora(tmp_path: Path, make: Callable[[Path], str], said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        Adapters.read([make(tmp_path)], ())
    assert "--lora" in str(raised.value) and "\n" not in str(raised.value)


def test_a_lora_of_another_model(tiny_folder: Path, kl_folder: Path, tmp_path: Path) -> None:
    file = lora_for(kl_folder, tmp_path / "kl.safetensors")
    with pytest.raises(InputError, match=r"kl.safetensors does not fit this model") as raised:
        loaded(tiny_folder, str(file))
    assert "\n" not in str(raised.value)


def test_a_lora_that_touches_nothing_of_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    save_file({"transformer.blocks.0.q.lora_A.weight": torch.zeros(2, 4)}, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match=r"flux.safetensors (changes nothing of|does not fit) this model"):
        loaded(tiny_folder, str(tmp_path / "flux.safetensors"))


def test_embeddings_that_cannot_be_used(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "word.safetensors"
    save_file({"emb_params": torch.zeros(2, 7)}, file)
    with pytest.raises(InputError, match="has 7 channels and the text encoder 24"):
        loaded(tiny_folder, embeddings=(str(file),))
    with pytest.raises(InputError, match="two --embedding files are called 'word'"):
        Adapters.read((), (str(file), f"{file}:word"))
    with pytest.raises(InputError, match="is no word that a prompt could hold"):
        Adapters.read((), (f"{file}:two words",))
    save_file({"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(1, 16)}, file)
    with pytest.raises(InputError, match="made for 2 text encoders and the model has 1"):
        loaded(tiny_folder, embeddings=(str(file),))
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="holds no textual inversion"):
        Adapters.read((), (str(file),))

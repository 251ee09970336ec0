"""What is put on top of a model: LoRAs, merged into its weights, words it has learnt, another reading of prompts.

Source: Hu et al., LoRA, arXiv 2106.09685; Gal et al., Textual Inversion, arXiv 2208.01618. Read by diffusers and peft.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.errors import InputError

from .families import family_of_unet

if TYPE_CHECKING:
    from torch import Tensor

MOST = 10.0  # of a LoRA's weight, either way: beyond it nothing but noise was ever wanted
OF_LAYER = re.compile(r"lora_A\b|lora_down\b|lora\.down\b|lora_linear_layer\.down\b")  # one tensor of each layer
OF_SDXL = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}


@dataclass(frozen=True)
class Lora:
    """A LoRA file, and how much of it is added."""

    file: Path
    weight: float = 1.0

    @classmethod
    def read(cls, text: str) -> Lora:
        """FILE or FILE:WEIGHT; InputError where that is no LoRA, or the weight is out of range."""
        file, weight = _split(text)
        try:
            number = 1.0 if weight is None else float(weight)
        except ValueError:
            raise InputError(
                f"--lora {text!r}: {weight!r} is no weight; write FILE:WEIGHT such as style.safetensors:0.7"
            ) from None
        if not -MOST <= number <= MOST:
            raise InputError(f"--lora {text!r}: the weight must lie between -{MOST:g} and {MOST:g}")
        names = _names("--lora", file)
        if names and all(name.startswith("base_model.model.") for name in names):
            raise InputError(
                f"--lora {file} is an adapter as peft saves it, whose scale lies in another file; save it with "
                "diffusers' save_lora_weights"
            )
        if not any("lora" in name.lower() for name in names):
            raise InputError(
                f"--lora {file} holds no LoRA; give a file of LoRA weights for this model, or leave it out"
            )
        return cls(file, number)


@dataclass(frozen=True)
class Embedding:
    """A file of textual inversion, and the word that stands for it in prompts."""

    file: Path
    token: str

    @classmethod
    def read(cls, text: str) -> Embedding:
        """FILE or FILE:TOKEN, without one the file's own, or its stem; InputError where that is no such file."""
        file, token = _split(text)
        names = _names("--embedding", file)
        if set(names) != set(OF_SDXL) and len(names) != 1:
            raise InputError(f"--embedding {file} holds no textual inversion; give a file with one embedding")
        own = file.stem if len(names) > 1 or names[0] == "emb_params" else names[0]
        if token is not None and (not token or " " in token):
            raise InputError(
                f"--embedding {text!r}: {token!r} is no word that a prompt could hold; leave out its spaces"
            )
        return cls(file, token or own)


@dataclass(frozen=True)
class Adapters:
    """All that is put on top of a model, in the order in which it was asked for.

    prompt_weighting   whether prompts are read as compel reads them
    """

    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    prompt_weighting: bool = False

    @classmethod
    def read(cls, loras: Sequence[str], embeddings: Sequence[str], prompt_weighting: bool = False) -> Adapters:
        """The texts of --lora and --embedding; InputError for the first that cannot be used."""
        read = cls(tuple(map(Lora.read, loras)), tuple(map(Embedding.read, embeddings)), prompt_weighting)
        tokens = [embedding.token for embedding in read.embeddings]
        twice = next((token for token in tokens if tokens.count(token) > 1), None)
        if twice is not None:
            raise InputError(f"two --embedding files are called {twice!r}; name one otherwise with FILE:TOKEN")
        return read

    def __bool__(self) -> bool:
        return bool(self.loras or self.embeddings or self.prompt_weighting)


NO_ADAPTERS = Adapters()


def adapt(pipeline: Any, adapters: Adapters) -> None:
    """Put adapters on a loaded pipeline, for good: its modules keep their names.

    raises   InputError, naming the file, where one does not fit the model
    """
    for embedding in adapters.embeddings:
        with _fitting("--embedding", embedding.file):
            _learn(pipeline, embedding)
    if adapters.loras:
        _merge(pipeline, adapters.loras)


def _merge(pipeline: Any, loras: Sequence[Lora]) -> None:
    names = [f"lora_{place}" for place in range(len(loras))]
    encoders = [name for name in family_of_unet(pipeline.unet.config).COMPONENTS if name.startswith("text_encoder")]
    parts = ["unet", *encoders]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of what is meant: several LoRAs in one model
        for name, lora in zip(names, loras, strict=True):
            with _fitting("--lora", lora.file):
                pipeline.load_lora_weights(
                    lora.file.parent, weight_name=lora.file.name, adapter_name=name, local_files_only=True
                )
            held = sum(bool(OF_LAYER.search(tensor)) for tensor in _names("--lora", lora.file))
            found = sum(
                name in getattr(layer, "lora_A", ()) for part in parts for layer in getattr(pipeline, part).modules()
            )
            if not found:
                raise InputError(
                    f"--lora {lora.file} changes nothing of this model; give one that was trained on its family"
                )
            if 2 * found < held:
                raise InputError(
                    f"--lora {lora.file} is of {held} layers, of which this model has {found}; give one that was "
                    "trained on its family"
                )
    pipeline.set_adapters(names, [lora.weight for lora in loras])
    pipeline.fuse_lora(components=parts, adapter_names=names)
    pipeline.unload_lora_weights()


def _learn(pipeline: Any, embedding: Embedding) -> None:
    from safetensors.torch import load_file

    vectors = load_file(embedding.file)
    if set(vectors) != set(OF_SDXL):
        vectors = {"clip_l": next(iter(vectors.values()))}
    wanted = {part for part, (encoder, _) in OF_SDXL.items() if hasattr(pipeline, encoder)}
    if set(vectors) != wanted:
        raise ValueError(f"it was made for {len(vectors)} text encoders and the model has {len(wanted)}")
    for part, vector in vectors.items():
        encoder, tokenizer = (getattr(pipeline, name) for name in OF_SDXL[part])
        pipeline.load_textual_inversion(
            _of_width(vector, encoder.config.hidden_size), embedding.token, tokenizer=tokenizer, text_encoder=encoder
        )


def _of_width(vector: Tensor, width: int) -> Tensor:
    if vector.shape[-1] != width:
        raise ValueError(f"its embedding has {vector.shape[-1]} channels and the text encoder {width}")
    return vector


@contextmanager
def _fitting(option: str, file: Path) -> Iterator[None]:
    """One sentence where a file and the model do not go together, whatever diffusers or peft make of it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{option} {file} does not fit this model ({reason}); give one that was trained on its family"
        ) from None


def absolute(text: str) -> str:
    """FILE[:REST] as it is understood from any folder."""
    file, rest = _split(text)
    return str(file.absolute()) if rest is None else f"{file.absolute()}:{rest}"


def _split(text: str) -> tuple[Path, str | None]:
    """FILE[:REST] as (FILE, REST); a file whose own name holds a colon is itself."""
    whole = Path(text).expanduser()
    file, colon, rest = text.rpartition(":")
    return (Path(file).expanduser(), rest.strip()) if colon and not whole.is_file() else (whole, None)


def _names(option: str, file: Path) -> list[str]:
    """Names of the tensors of a .safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors" or not file.is_file():
        what = "is not there" if file.suffix == ".safetensors" else "is no .safetensors file, and others are not opened"
        raise InputError(f"{option} {file} {what}; give a .safetensors file")
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{option} {file} is damaged ({error}); download it again") from None

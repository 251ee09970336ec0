"""What CLIP says of a clip: how well its frames fit a sentence, and how alike neighbouring frames are.

Source: Radford et al., arXiv 2103.00020 (CLIP); Hessel et al., arXiv 2104.08718 (CLIPScore); Esser et al., arXiv
2302.03011, section 4 (frame consistency). Numbers compare only within one CLIP model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from store.errors import InputError

Rgb = np.ndarray[Any, Any]
FRAMES_PER_PASS = 16


@dataclass(frozen=True)
class Clip:
    """A CLIP model with the tokenizer and the image preprocessing that it was trained with."""

    model: Any
    tokenizer: Any
    processor: Any

    def text_alignment(self, frames: Rgb, prompt: str) -> float:
        """Mean over frames of 100 · cos(frame, prompt); in [-100, 100], higher is a better fit.

        As torchmetrics' CLIPScore, without its clamp at 0. Warns of the words that the model has no room for.

        frames   rgb (frame, height, width, 3) uint8; the preprocessing may crop them to their middle square
        """
        if cut := self.cut_from(prompt):
            logging.getLogger(__name__).warning("CLIP has no room for the end of the prompt: %r is not judged", cut)
        return 100 * float((self.embed_frames(frames) @ self.embed_text(prompt)).mean())

    def frame_consistency(self, frames: Rgb) -> float:
        """Mean over neighbours of 100 · cos(frame i, frame i + 1); 100 for a still, NaN for fewer than two frames."""
        embeddings = self.embed_frames(frames)
        return 100 * float((embeddings[1:] * embeddings[:-1]).sum(-1).mean())

    def cut_from(self, prompt: str) -> str:
        """The end of `prompt` that the model has no room for; empty when all of it fits."""
        ids = self.tokenizer(prompt, truncation=False, add_special_tokens=False, verbose=False).input_ids
        return str(self.tokenizer.decode(ids[self._length - 2 :])).strip()

    @torch.inference_mode()
    def embed_frames(self, frames: Rgb) -> Tensor:
        """Frames rgb (frame, height, width, 3) uint8 → unit vectors (frame, channel) float32, on the CPU."""
        batches = [frames[start : start + FRAMES_PER_PASS] for start in range(0, len(frames), FRAMES_PER_PASS)]
        return torch.cat([self._embed_batch(batch) for batch in batches])

    @torch.inference_mode()
    def embed_text(self, prompt: str) -> Tensor:
        """A sentence → unit vector (channel,) float32, on the CPU; the end that does not fit is cut, see `cut_from`."""
        words = self.tokenizer(prompt, truncation=True, max_length=self._length, return_tensors="pt")
        pooled = self.model.text_model(**words.to(self.model.device)).pooler_output
        return _unit(self.model.text_projection(pooled))[0]

    def _embed_batch(self, frames: Rgb) -> Tensor:
        pixels = self.processor(images=list(frames), input_data_format="channels_last", return_tensors="pt")
        pooled = self.model.vision_model(pixels["pixel_values"].to(self.model.device)).pooler_output
        return _unit(self.model.visual_projection(pooled))

    @property
    def _length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()


def load_clip(model: str, device: str = "cpu") -> Clip:
    """Load a CLIP model in float32 from a folder or by its hub id; InputError, one sentence, where that fails.

    The image processor is transformers' PIL one, so that numbers do not depend on whether torchvision is installed.
    """
    from transformers import CLIPModel, CLIPTokenizer, PretrainedConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    kind = _loaded(model, "config.json", lambda: PretrainedConfig.get_config_dict(model))[0].get("model_type")
    if kind != "clip":  # transformers would fill what is missing with random weights
        found = f"its config.json says {kind}" if kind else "it has no config.json that says so"
        raise InputError(f"{model} is no CLIP model ({found}); give a folder or hub id of model type clip")
    processor = _loaded(model, "preprocessor_config.json", lambda: CLIPImageProcessorPil.from_pretrained(model))
    tokenizer = _loaded(model, "tokenizer", lambda: CLIPTokenizer.from_pretrained(model))
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers makes an empty one of missing files
        raise InputError(f"CLIP model {model} has no tokenizer files; give a complete folder, or a hub id")
    network, notes = _loaded(
        model, "model", lambda: CLIPModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    )
    if missing := sorted(notes["missing_keys"]):
        raise InputError(f"CLIP model {model} lacks {len(missing)} weights ({missing[0]}, …); download it again")
    return Clip(network.eval().requires_grad_(False).to(device), tokenizer, processor)


def _loaded(model: str, part: str, load: Callable[[], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    except SafetensorError as error:
        raise InputError(f"a weight file of CLIP model {model} is damaged ({error}); download it again") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:240]
        raise InputError(
            f"the {part} of CLIP model {model} cannot be loaded ({reason}); give a complete folder, or a hub id"
        ) from None

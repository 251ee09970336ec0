"""The decoder that a run is asked to use in the place of its model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from store.errors import InputError
from store.store import Store

from .models import ModelFiles


@dataclass(frozen=True)
class DecoderFiles:
    """A decoder that is there: the folder to load, and the hash of its bytes."""

    folder: Path
    key: str


def find_decoder(named: Path, model: ModelFiles, store: Store) -> DecoderFiles:
    """The decoder in the folder `named`, or in `vae` of it; InputError, one sentence, where it does not fit `model`."""
    from stages.backbones.decoders import autoencoder_folder, check_folder, identity_files

    if not named.expanduser().is_dir():
        raise InputError(f"--decoder {named} is no folder; give a diffusers folder of an autoencoder, or of a pipeline")
    folder = autoencoder_folder(named.expanduser())
    check_folder(folder, model.folder)
    files = [path.relative_to(folder) for path in identity_files(folder)]
    return DecoderFiles(folder, f"blake3:{store.folder_hash(folder, files)}")

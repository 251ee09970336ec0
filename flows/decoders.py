"""The decoder that a run is asked to use in the place of its model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from store.errors import InputError
from store.store import Store

from .models import ModelFiles


@dataclass(frozen=True)
class DecoderFiles:
    """A decoder that is there: the folder to load, its class, and the hash of its bytes."""

    folder: Path
    kind: str
    key: str

    @property
    def border(self) -> int:
        """How many frames on either side of a part it may have to be given."""
        from stages.backbones.decoders import border_of

        return border_of(self.kind)


def find_decoder(named: Path, model: ModelFiles, store: Store) -> DecoderFiles:
    """The decoder in the folder `named`, or in `vae` of it; InputError, one sentence, where it does not fit `model`."""
    from stages.backbones.decoders import autoencoder_folder, check_folder, identity_files

    if not named.expanduser().is_dir():
        raise InputError(f"--decoder {named} is no folder; give a diffusers folder of an autoencoder, or of a pipeline")
    folder = autoencoder_folder(named.expanduser())
    kind = check_folder(folder, model.folder)
    files = [path.relative_to(folder) for path in identity_files(folder)]
    return DecoderFiles(folder, kind, f"blake3:{store.folder_hash(folder, files)}")

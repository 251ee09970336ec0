"""What a plan must know of a video: its description and the hash of its bytes. The file itself only decoding needs."""

from __future__ import annotations

from pathlib import Path

from stages.media.video import VideoInfo, probe
from store.schemas import Frozen
from store.store import Store


class KnownVideo(Frozen):
    """A video as a plan sees it: so a plan can be made where the file is not.

    key    "blake3:" and the hash of the file's bytes
    """

    key: str
    info: VideoInfo

    @classmethod
    def of(cls, file: Path, store: Store) -> KnownVideo:
        """Look at a file; InputError where it is no video."""
        info = probe(file)
        return cls(key=f"blake3:{store.file_hash(file)}", info=info)

"""Parts of the picture with a prompt each, as they are written: `MASK=PROMPT`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from store.errors import InputError

FOUND = "cross-attention:"  # what is no place but says how a mask is found


@dataclass(frozen=True)
class Region:
    """Where a prompt rules: a place as --mask takes it, or words as --mask-from does; and the prompt."""

    mask: Path | None
    mask_from: str | None
    prompt: str

    @classmethod
    def read(cls, text: str) -> Region:
        """MASK=PROMPT, parted at the first `=`: a prompt may hold others, the name of a file may not.

        raises   InputError where there is no mask or no prompt
        """
        mask, _, prompt = (part.strip() for part in text.partition("="))
        if not mask or not prompt:
            raise InputError(
                f'--region {text!r} is not MASK=PROMPT; write for example ball.mp4="a golden ball" or '
                f'{FOUND}tree="an autumn tree"'
            )
        if not mask.startswith(FOUND):
            return cls(Path(mask), None, prompt)
        if not mask.removeprefix(FOUND).strip():
            raise InputError(f"--region {text!r} names no word; write for example {FOUND}tree=PROMPT")
        return cls(None, mask, prompt)

    def __str__(self) -> str:
        return f"{self.mask or self.mask_from}={self.prompt}"

    def within(self, folder: Path) -> Region:
        """The same with its place seen from `folder`."""
        return self if self.mask is None else replace(self, mask=folder / self.mask)

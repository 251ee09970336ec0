"""Folders of pictures, one per frame: in the order in which people number them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from store.errors import InputError

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DEEP = ("I", "F")  # modes whose black and white are not said: 32 bits, whole or with a point


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order of their names: 2.png comes before 10.png; hidden files are none."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith("."))
    return sorted(found, key=_natural)


def read_rgba(file: Path, option: str) -> np.ndarray[Any, Any]:
    """A picture rgba (height, width, channel) uint8, of 16 bits the upper half.

    raises   InputError, naming the `option` it was given with, where it is none, has 32 bits, or is several
    """
    with _opened(file, option) as picture:
        if picture.mode in DEEP:
            raise InputError(f"{option} {file} has 32 bits a pixel, of which none says what is white; save it as PNG")
        if getattr(picture, "is_animated", False) and picture.format != "MPO":  # which cameras write as .jpg
            count = getattr(picture, "n_frames", 2)
            raise InputError(f"{option} {file} holds {count} pictures; save each as a file of one folder")
        if picture.mode.startswith("I;16"):
            return np.asarray(Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8)).convert("RGBA"))
        return np.asarray(picture.convert("RGBA"))


def read_rgb(file: Path, option: str) -> np.ndarray[Any, Any]:
    """A picture rgb (height, width, channel) uint8, black where it is transparent; InputError like `read_rgba`."""
    rgba = read_rgba(file, option)
    rgb: np.ndarray[Any, Any] = (rgba[..., :3] * (rgba[..., 3:] / 255)).round().astype(np.uint8)
    return rgb


def size_of(file: Path, option: str) -> tuple[int, int]:
    """Width and height of a picture, of which no more than its head is read; InputError like `read_rgba`."""
    with _opened(file, option) as picture:
        return picture.size


@contextmanager
def _opened(file: Path, option: str) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as picture:
            yield picture
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{option} {file} cannot be read as a picture ({error}); save it as PNG") from None


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts], path.name

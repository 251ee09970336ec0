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


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order of their names: 2.png comes before 10.png."""
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=_natural)


def read_rgba(file: Path, option: str) -> np.ndarray[Any, Any]:
    """A picture rgba (height, width, channel) uint8; InputError, naming the `option` it was given with, otherwise."""
    with _opened(file, option) as picture:
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

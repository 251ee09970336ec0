"""Settings that a user has written into a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from store.errors import InputError


def read_toml(file: Path, name: str, way_out: str) -> dict[str, Any]:
    """What is written in `file`; InputError, one sentence, where it cannot be read.

    name      what the user calls it: "suite", "--config"
    way_out   what to give where there is no such file
    """
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # some editors write a mark before the first letter
    except FileNotFoundError:
        raise InputError(f"{name} {file} is not there; give {way_out}") from None
    except UnicodeDecodeError:
        raise InputError(f"{name} {file} is no text in UTF-8; give {way_out}, saved as such") from None
    except OSError as error:
        raise InputError(f"{name} {file} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} {file} is not valid TOML: {error}") from None

"""Files of the Hugging Face hub: from its client's cache, downloaded where they are not there yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from store.errors import InputError


def is_hub_id(name: str) -> bool:
    """Whether `name` reads like org/name, and not like a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith((".", "/"))


def snapshot(name: str, wanted: list[str]) -> Path:
    """The folder with the files of a hub id that match one of the patterns `wanted`; InputError without network."""
    from huggingface_hub import snapshot_download

    return fetched(name, lambda: snapshot_download(name, allow_patterns=wanted))


def fetched(name: str, fetch: Callable[[], str]) -> Path:
    """What `fetch` downloads, as a path; InputError, one sentence, where it cannot."""
    try:
        return Path(fetch())
    except Exception as error:  # the hub's client raises a dozen unrelated classes, all meaning: not to be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name!r} is no folder or file here, and as a hub id it cannot be downloaded: {reason}"
        ) from None

"""A disk that is really full, and rights that are really missing: a sentence, and what was committed is still good."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from store.collect import Limits, collect
from store.errors import StorePlaceError
from store.schemas import Block, Schema, Variable
from store.store import Store
from store.verify import verify
from tests.store.demo import demo_key, demo_schema, make_demo

KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=755", "tmpfs", str(place)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here: that takes root's rights")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def large_schema(kib: int) -> Schema:
    """`kib` parts of one KiB of noise each."""
    noise = Variable(dims=("frame", "byte"), shape=(kib, KIB), dtype="uint8", chunks=(1, KIB))
    return Schema(artifact="noise", variables={"x": noise}, parts=("frame", 16))


def noise(part: range) -> Iterator[Block]:
    random = np.random.default_rng(part.start)
    yield Block("x", (part.start, 0), random.integers(0, 256, (len(part), KIB), dtype=np.uint8))


def write_large(store: Store, kib: int, steps: int) -> None:
    with store.draft(demo_key(steps=steps), large_schema(kib)) as draft:
        for part in draft.missing():
            draft.write(part, noise(part))


def fill(path: Path) -> None:
    """Write until nothing more can be written."""
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(KIB))


def test_a_disk_that_fills_gives_the_draft_back_and_keeps_what_was_committed(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    made = make_demo(store)
    said = rf"^the disk is full: noise demo_stage/\w+ needs 1\.0 MB in {store.root}, where .* is free; free some space"
    with pytest.raises(StorePlaceError, match=said):
        write_large(store, 1024, steps=51)
    assert store.find(demo_key(steps=51)) is None
    assert verify(store).ok
    assert store.find(demo_key()) == made
    write_large(store, 64, steps=52)
    with pytest.raises(StorePlaceError, match="are needed in"):
        store.check_space(store.free_bytes() + 1)
    collect(store, Limits(max_bytes=0))
    assert store.find(demo_key()) is None
    assert make_demo(store).digest == made.digest


def test_a_disk_that_fills_has_its_room_back_at_once(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    free = store.free_bytes()
    with pytest.raises(StorePlaceError):
        write_large(store, 1024, steps=51)
    assert store.free_bytes() > free - 32 * KIB  # a lock and an empty folder may be left
    assert verify(store).drafts == ()


def test_a_full_disk_can_still_be_read_collected_and_told_of(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    make_demo(store)
    with pytest.raises(OSError, match="No space"):
        fill(small_disk / "filler")
    with store.lease([demo_key().hex]):  # there is no room for its file either
        assert store.find(demo_key()) is not None
    assert verify(store).ok
    with pytest.raises(StorePlaceError, match="the disk is full: a draft does not fit"):
        store.check_writable()
    with pytest.raises(StorePlaceError, match=r"^the disk is full: "):
        make_demo(store, demo_key(steps=51), demo_schema().model_copy(update={"attrs": {"scale": 2.0}}))
    assert [path for path in store.layout.drafts.iterdir() if path.is_dir()] == []
    freed = collect(store, Limits(max_bytes=0)).freed
    assert freed > 0 and store.held() == set()

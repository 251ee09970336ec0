"""A file is its bytes: names do not matter, changes do, and remembering never shows an old answer."""

import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from store import hashing
from store.errors import InputError
from store.hashing import file_hash, folder_hash
from store.store import Store


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file count as old enough to be remembered."""
    monkeypatch.setattr(hashing, "SETTLED_NS", -1)
    assert path.exists()


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_the_hash_is_blake3_of_the_bytes_whatever_the_name(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    for name in ("a.mp4", "another name.mp4"):
        (tmp_path / name).write_bytes(data)
        assert file_hash(tmp_path / name) == blake3(data).hexdigest()


def test_a_remembered_file_is_not_read_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"clip")
    settled(path, monkeypatch)
    first = store.file_hash(path)
    reads: list[Path] = []
    monkeypatch.setattr(hashing, "payload_hash", lambda path: reads.append(path) or "0" * 64)
    assert store.file_hash(path) == first
    assert store.file_hash(str(path)) == first
    assert reads == []


def test_a_changed_file_is_read_again_even_with_its_old_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"clip")
    settled(path, monkeypatch)
    first, stat = store.file_hash(path), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"CLIP")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert store.file_hash(path) == blake3(b"CLIP").hexdigest() != first


def test_a_file_that_was_just_written_is_not_remembered(store: Store, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    store.file_hash(tmp_path / "clip.mp4")
    assert not store.layout.hashes.exists()


def test_a_damaged_note_is_ignored(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"clip")
    settled(path, monkeypatch)
    first = store.file_hash(path)
    (note,) = store.layout.hashes.iterdir()
    for text in ("{", "[]", "{}", "7"):
        note.write_text(text)
        assert store.file_hash(path) == first


def test_a_file_that_cannot_be_read_or_changes_meanwhile_is_the_users_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"cannot read .*missing"):
        file_hash(tmp_path / "missing.mp4")
    with pytest.raises(InputError, match="cannot read"):
        file_hash(tmp_path)
    growing = tmp_path / "growing.mp4"
    growing.write_bytes(b"clip")

    def grow(path: Path) -> str:
        path.write_bytes(b"clip and more")
        return "0" * 64

    monkeypatch.setattr(hashing, "payload_hash", grow)
    with pytest.raises(InputError, match="was changed while it was read"):
        file_hash(growing)


def test_a_folder_is_its_named_files_in_any_order(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "unet").mkdir(parents=True)
        (tmp_path / root / "unet" / "weights").write_bytes(b"w")
        (tmp_path / root / "config").write_bytes(b"c")
    (tmp_path / "two" / "README").write_bytes(b"not weights")
    names = ["unet/weights", "config"]
    whole = folder_hash(tmp_path / "one", names)
    assert whole == folder_hash(tmp_path / "two", reversed([Path(name) for name in names]))
    assert whole != folder_hash(tmp_path / "one", names[:1])
    (tmp_path / "two" / "config").write_bytes(b"C")
    assert whole != folder_hash(tmp_path / "two", names)
    (tmp_path / "one" / "config").rename(tmp_path / "one" / "settings")
    assert whole != folder_hash(tmp_path / "one", ["unet/weights", "settings"])

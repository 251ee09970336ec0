"""What an adversary, or bad luck, may do to a store in use: nothing half-written is found, nothing reads as zeros."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from store.artifact import Artifact
from store.draft import Draft
from store.errors import StoreError, StorePlaceError
from store.hashing import payload_hash
from store.layout import flush_tree
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo, stopped

ROOT = Path(__file__).parents[2]
PARTS = demo_schema().divided()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return make_demo(store)


def begun(store: Store, parts: int = 3) -> Path:
    """A draft that was stopped after so many parts; returns its folder."""
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for part in PARTS[:parts]:
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
        raise KeyboardInterrupt
    return store.layout.draft("demo_stage", demo_key().hex)


def moved(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A draft that was stopped when its object had moved and its record had not; returns its folder."""

    def stop(draft: Draft, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Draft, "_publish", stop)
        make_demo(store)
    return store.layout.draft("demo_stage", demo_key().hex)


@contextmanager
def losing_its_place() -> Iterator[None]:
    """A block that must end because the store, or its drafts, are no longer where they were."""
    with pytest.raises(
        StorePlaceError,
        match=r"drafts was moved or removed while demo_stage/\w+ was written there; put the store in its",
    ):
        yield


# what was found and goes away


@pytest.mark.parametrize("gone", ["rgb/c/1/0/0", "rgb", "."])
def test_what_is_removed_after_it_was_found_is_told_and_never_read_as_zeros(artifact: Artifact, gone: str) -> None:
    assert artifact["rgb"][:].any()
    path = artifact.path / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(StoreError, match=r"rgb/c/\S+ was removed while it was in use; run again"):
        artifact["rgb"][:]


def test_a_bit_that_flips_is_told_when_it_is_read_with_the_way_out(artifact: Artifact) -> None:
    chunk = artifact.path / "rgb" / "c" / "1" / "0" / "0"
    assert artifact["rgb"][:].any()
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert artifact["rgb"][0].any(), "the rest can be read"
    with pytest.raises(StoreError, match=r"rgb is damaged \(.*checksum.*\); tf verify --repair drops it"):
        artifact["rgb"][:]


def test_a_dataset_tells_it_as_well(artifact: Artifact) -> None:
    dataset = artifact.dataset()
    shutil.rmtree(artifact.path / "rgb" / "c")
    with pytest.raises(StoreError, match="was removed while it was in use"):
        dataset["rgb"].to_numpy()


def test_an_object_that_comes_and_goes_is_found_or_not_but_never_an_error(store: Store, artifact: Artifact) -> None:
    ended = threading.Event()
    copy = artifact.path.with_name("copy")
    shutil.copytree(artifact.path, copy)

    def come_and_go() -> None:
        while not ended.is_set():
            shutil.rmtree(artifact.path)
            shutil.copytree(copy, artifact.path)

    going = threading.Thread(target=come_and_go)
    going.start()
    try:
        seen = {store.find(demo_key()) is not None for _ in range(2000)}
        changed = [store.verify(artifact.record) for _ in range(50)]
    finally:
        ended.set()
        going.join()
    assert False in seen and any(changed)
    assert store.find(demo_key()) == artifact


# what a power cut or a kill leaves


@pytest.mark.parametrize("left", ["latents/zarr.0f.partial", "zarr.0f.partial", "latents/c/0/0.0f.partial", "new/c/0"])
def test_what_a_killed_write_leaves_is_no_part_of_the_artifact(store: Store, left: str, tmp_path: Path) -> None:
    stray = begun(store) / "group" / left
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text("half")
    assert make_demo(store).digest == make_demo(Store(tmp_path / "undisturbed")).digest


@pytest.mark.parametrize("text", ["", "{", "null", "another", "object"])
def test_a_pending_record_that_is_damaged_costs_only_the_work_behind_it(
    store: Store, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = make_demo(Store(tmp_path / "undisturbed"))
    pending = moved(store, monkeypatch) / "record.json"
    if text == "another":
        pending.write_text(make_demo(Store(tmp_path / "other"), demo_key(steps=7)).record.to_json())
    elif text == "object":  # of the right size, as a disk may leave it that lost power
        chunk = store.layout.object(undisturbed.digest) / "rgb" / "c" / "0" / "0" / "0"
        chunk.write_bytes(bytes(chunk.stat().st_size))
    else:
        pending.write_text(text)
    assert make_demo(store).digest == undisturbed.digest
    assert store.verify(undisturbed.record) == []


def test_an_empty_record_is_a_miss_with_a_warning_and_is_written_anew(
    store: Store, artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.layout.record("demo_stage", demo_key().hex)
    path.write_bytes(b"")
    assert store.find(demo_key()) is None
    assert f"the record {path} is damaged" in caplog.text
    assert make_demo(store).digest == artifact.digest
    assert store.find(demo_key()) == artifact


def test_a_draft_whose_record_is_there_leaves_at_most_an_empty_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def stop(path: Path, target: Path) -> Path:
        replace(path, target)
        if path.name == "record.json":
            raise KeyboardInterrupt
        return target

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Path, "replace", stop)
        make_demo(store)
    assert store.find(demo_key()) is not None
    assert list(store.layout.draft("demo_stage", demo_key().hex).iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what was flushed is seen in /proc")
def test_every_byte_is_on_the_disk_before_the_record_speaks_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[tuple[str, int, str]] = []  # a flushed file is known by its inode, since folders are renamed
    fsync, replace = os.fsync, Path.replace

    def flushed(file: int) -> None:
        fsync(file)
        happened.append(("flushed", os.fstat(file).st_ino, str(Path(f"/proc/self/fd/{file}").readlink())))

    def replaced(path: Path, target: Path) -> Path:
        happened.append(("replaced", path.stat().st_ino, str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    artifact = make_demo(store)
    record = store.layout.record("demo_stage", demo_key().hex)
    committed = next(at for at, each in enumerate(happened) if each[0] == "replaced" and each[2] == str(record))
    before = {inode for what, inode, _ in happened[:committed] if what == "flushed"}
    after = {name for what, _, name in happened[committed:] if what == "flushed"}
    there = [artifact.path, record, store.root / "objects", *artifact.path.rglob("*")]
    assert [path for path in there if path.stat().st_ino not in before] == []
    assert str(record.parent) in after


def test_a_folder_is_flushed_with_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(os.fstat(file).st_ino))
    flush_tree(tmp_path / "a")
    assert sorted(seen) == sorted(path.stat().st_ino for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")])


# a store that is taken away while a draft is written


def test_a_draft_that_another_process_has_taken_over_does_no_harm(store: Store, tmp_path: Path) -> None:
    undisturbed = make_demo(Store(tmp_path / "undisturbed"))
    with losing_its_place(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        shutil.rmtree(store.layout.drafts)
        with store.draft(demo_key(), demo_schema()) as second:
            for part in PARTS[:2]:
                second.write(part, demo_blocks(part))
            with losing_its_place():
                draft.write(PARTS[1], demo_blocks(PARTS[1]))
            second.write(PARTS[2], demo_blocks(PARTS[2]))
            second.attrs["fps"] = 24.0
    found = store.find(demo_key())
    assert found is not None
    assert found.digest == undisturbed.digest
    assert store.verify(found.record) == []


@pytest.mark.parametrize("when", ["block", "end", "commit"])
def test_a_store_that_is_moved_away_is_told_and_goes_on_in_its_new_place(
    store: Store, tmp_path: Path, when: str
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def moving(part: range) -> Iterator[Any]:
        for position, block in enumerate(demo_blocks(part)):
            if position == 3 and when == "block":
                store.root.rename(elsewhere)
            yield block
        if when == "end":
            store.root.rename(elsewhere)

    with losing_its_place(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        draft.write(PARTS[1], moving(PARTS[1]) if when != "commit" else demo_blocks(PARTS[1]))
        draft.write(PARTS[2], demo_blocks(PARTS[2]))
        store.root.rename(elsewhere)
    assert not store.root.exists()
    kept = {"block": 1, "end": 1, "commit": 3}[when]
    with stopped(), Store(elsewhere).draft(demo_key(), demo_schema()) as draft:
        assert draft.missing() == PARTS[kept:]
        raise KeyboardInterrupt


def test_a_store_that_is_removed_and_made_anew_is_left_alone(store: Store) -> None:
    with losing_its_place(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        shutil.rmtree(store.root)
        Store(store.root)
        draft.write(PARTS[1], demo_blocks(PARTS[1]))
    assert [path.name for path in store.root.iterdir()] == ["format"]


@pytest.mark.parametrize("gone", ["objects", "keys", "hashes", "runs"])
def test_a_folder_that_is_removed_during_a_draft_is_made_anew(store: Store, gone: str) -> None:
    make_demo(store, demo_key(steps=7))
    with store.draft(demo_key(), demo_schema()) as draft:
        for part in PARTS:
            draft.write(part, demo_blocks(part))
        shutil.rmtree(store.root / gone, ignore_errors=True)
    assert store.verify(draft.artifact.record) == []
    assert store.find(demo_key()) == draft.artifact


def test_parts_of_a_draft_that_cannot_be_removed_are_not_taken_for_those_of_another_promise(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(store, parts=1)
    changed = demo_schema().model_copy(update={"attrs": {"scale": 1.0}})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *given, **named: None)
        with pytest.raises(StorePlaceError, match=r"cannot write demo .*drafts.* cannot be removed"):
            make_demo(store, schema=changed)
    assert make_demo(store, schema=changed).attrs["scale"] == 1.0


def test_a_store_on_two_disks_is_told_before_anything_is_computed(store: Store, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk here")
    store.check_writable()
    (store.root / "objects").symlink_to(other)
    with pytest.raises(StorePlaceError, match=r"objects is on another disk than .*drafts, .*; keep the whole store on"):
        store.check_writable()


# files that are hashed


CUTTING = """
import sys
from pathlib import Path
from store.hashing import payload_hash
path = Path(sys.argv[1])
print("here", flush=True)
for _ in range(60):
    payload_hash(path)
"""


def test_a_file_that_is_cut_while_it_is_hashed_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.touch()
    os.truncate(path, 64 << 20)
    hashing = subprocess.Popen([sys.executable, "-c", CUTTING, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert hashing.stdout is not None
    hashing.stdout.readline()
    while hashing.poll() is None:
        os.truncate(path, 0)
        os.truncate(path, 64 << 20)
    assert hashing.returncode == 0


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, (8 << 20) + 3, (16 << 20)])
def test_a_file_is_hashed_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    from blake3 import blake3

    data = os.urandom(1 << 20) * (size >> 20) + bytes(size % (1 << 20))
    path = tmp_path / "file"
    path.write_bytes(data)
    assert payload_hash(path) == blake3(data).hexdigest()


@pytest.mark.parametrize("lie", ["size", "mtime_ns", "ctime_ns"])
def test_a_note_about_other_times_or_another_size_is_not_believed(store: Store, tmp_path: Path, lie: str) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"frames")
    os.utime(path, (0, 0))
    stat = path.stat()
    known = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    true = store.file_hash(path)
    store.layout.hashes.mkdir(exist_ok=True)
    note = store.layout.hashes / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"
    note.write_text(json.dumps({**known, lie: known[lie] + 1, "blake3": "f" * 64}))
    assert store.file_hash(path) == true


def test_a_file_from_the_future_is_hashed_every_time(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"frames")
    os.utime(path, (4_000_000_000, 4_000_000_000))
    store.file_hash(path)
    assert not list(store.layout.hashes.glob("*"))


def test_two_keys_of_equal_bytes_committed_at_once_are_both_whole(store: Store) -> None:
    keys = [demo_key(steps=steps) for steps in range(8)]
    begin = threading.Barrier(len(keys))
    failed: list[BaseException] = []

    def work(key: Any) -> None:
        begin.wait()
        try:
            make_demo(store, key)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    run_all(threads)
    assert failed == []
    found = [store.find(key) for key in keys]
    assert len({each.digest for each in found if each}) == 1 and all(found)
    assert not any(store.verify(each.record) for each in found if each)


def run_all(threads: list[threading.Thread]) -> None:
    do: list[Callable[[threading.Thread], None]] = [threading.Thread.start, threading.Thread.join]
    for each in do:
        for thread in threads:
            each(thread)

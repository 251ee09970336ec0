"""Nothing that was interrupted is ever found, and the next run does only what is missing."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr.storage

from store.draft import Draft
from store.errors import StorePlaceError
from store.schemas import Block
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo, stopped

ROOT = Path(__file__).parents[2]
PARTS = demo_schema().divided()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the artifact when nothing goes wrong."""
    return make_demo(Store(tmp_path_factory.mktemp("undisturbed") / "store")).digest


def resume(store: Store, undisturbed: str) -> list[range]:
    """Finish the draft; returns the parts that had to be computed."""
    computed = []
    with store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
            computed.append(part)
        draft.attrs["fps"] = 24.0
    assert draft.artifact.digest == undisturbed
    assert store.find(demo_key()) is not None
    assert [path for path in store.layout.drafts.iterdir() if path.suffix != ".lock"] == []
    return computed


def stopping(part: range, after: int) -> Iterator[Block]:
    for position, block in enumerate(demo_blocks(part)):
        if position == after:
            raise KeyboardInterrupt
        yield block


@pytest.mark.parametrize("after", range(7))
def test_stopped_after_any_block_keeps_the_finished_parts(store: Store, undisturbed: str, after: int) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        draft.write(PARTS[1], stopping(PARTS[1], after))
    assert store.find(demo_key()) is None
    assert resume(store, undisturbed) == PARTS[1:]


@pytest.mark.parametrize("finished", range(4))
def test_stopped_after_any_part_keeps_it(store: Store, undisturbed: str, finished: int) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for part in reversed(PARTS[3 - finished :]):
            draft.write(part, demo_blocks(part))
        spent = draft.seconds
        raise KeyboardInterrupt
    assert store.find(demo_key()) is None
    assert resume(store, undisturbed) == PARTS[: 3 - finished]
    record = store.resolve(demo_key().hex)
    assert record.seconds >= round(spent, 3)


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "marker", "metadata"])
def test_a_part_that_changed_on_disk_is_done_again(store: Store, undisturbed: str, damage: str) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for part in PARTS:
            draft.write(part, demo_blocks(part))
        raise KeyboardInterrupt
    folder = store.layout.draft("demo_stage", demo_key().hex)
    chunk = folder / "group" / "latents" / "c" / "1" / "0"
    data = chunk.read_bytes()
    if damage == "lost":
        chunk.unlink()
    elif damage == "cut":
        chunk.write_bytes(data[:-1])
    elif damage == "flipped":
        chunk.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "marker":
        (folder / "parts" / "1.json").write_text("{")
    else:
        (folder / "group" / "latents" / "zarr.json").write_text("{")
    assert resume(store, undisturbed) == ([] if damage == "metadata" else [PARTS[1]])


def test_another_promise_drops_the_draft(store: Store) -> None:
    with stopped(), store.draft(demo_key(), demo_schema(frames=8)) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        raise KeyboardInterrupt
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        assert draft.missing() == PARTS
        raise KeyboardInterrupt


def test_attributes_found_in_a_finished_part_survive(store: Store) -> None:
    def finding(draft: Draft, part: range) -> Iterator[Block]:
        yield from demo_blocks(part)
        draft.attrs["fps"] = 24.0

    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], finding(draft, PARTS[0]))
        raise KeyboardInterrupt
    with store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
    assert draft.artifact.attrs["fps"] == 24.0


def test_stopped_between_the_move_and_the_record_computes_nothing_again(
    store: Store, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(draft: Draft, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Draft, "_publish", stop)
        make_demo(store)
    assert store.find(demo_key()) is None
    assert resume(store, undisturbed) == []


# a full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 9])
def test_a_full_disk_says_how_much_is_needed_and_gives_back_the_draft(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    written: list[str] = []
    put = zarr.storage.LocalStore.set

    async def filling(self: zarr.storage.LocalStore, key: str, value: Any) -> None:
        if "c/" in key:
            written.append(key)
            if len(written) > after:
                raise OSError(code, os.strerror(code))
        await put(self, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", filling)
    with pytest.raises(
        StorePlaceError, match=rf"^the disk is full: demo \S+ needs 300 bytes in {store.root}, .* is free"
    ):
        make_demo(store)
    assert store.find(demo_key()) is None
    assert [path.suffix for path in store.layout.drafts.iterdir()] == [".lock"]
    assert not list(store.root.glob("keys/*/*"))


def test_an_error_of_the_stage_is_not_taken_for_one_of_the_disk(store: Store) -> None:
    def unreadable(part: range) -> Iterator[Block]:
        raise FileNotFoundError(errno.ENOENT, "the video is gone")
        yield

    with pytest.raises(FileNotFoundError, match="the video is gone"), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], unreadable(PARTS[0]))


# more than one


def test_two_threads_compute_once(store: Store) -> None:
    begun = threading.Barrier(2)
    computed: list[range] = []
    digests: list[str] = []

    def work() -> None:
        begun.wait()
        with store.draft(demo_key(), demo_schema()) as draft:
            for part in draft.missing():
                computed.append(part)
                draft.write(part, demo_blocks(part))
        digests.append(draft.artifact.digest)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == PARTS
    assert len(digests) == 2
    assert len(set(digests)) == 1


def second_process(store: Store, where: str) -> subprocess.Popen[str]:
    """A process that drafts the demo and has said that it is at `where`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.demo", str(store.root), where],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "remaining"), [("block", PARTS[1:]), ("part", PARTS[2:]), ("moved", [])], ids=["block", "part", "moved"]
)
def test_a_killed_process_frees_its_lock_and_is_resumed(
    store: Store, undisturbed: str, where: str, remaining: list[range]
) -> None:
    process = second_process(store, where)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert store.find(demo_key()) is None
    assert resume(store, undisturbed) == remaining


@pytest.mark.slow
def test_a_second_process_waits_and_is_told(store: Store, undisturbed: str) -> None:
    process = second_process(store, "start")
    told: list[Draft] = []

    def ask() -> None:
        with store.draft(demo_key(), demo_schema()) as draft:
            assert draft.missing() == []
        told.append(draft)

    waiting = threading.Thread(target=ask)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert store.find(demo_key()) is None
    said, _ = process.communicate("go on\n", timeout=60)
    waiting.join(60)
    assert said == f"done {undisturbed}\n"
    assert told[0].found == told[0].artifact
    assert told[0].artifact.digest == undisturbed

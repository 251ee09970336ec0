"""What unfinished work keeps in its draft is there whole or not at all, and never part of what comes out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store import draft as drafts
from store.draft import Draft
from store.errors import StorePlaceError
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo, stopped

VALUES = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def kept(store: Store) -> Path:
    """The file of what a draft kept before it was stopped, under the name `state.7`."""
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.provenance.update(device="cpu")
        draft.keep("state.7", VALUES)
        raise KeyboardInterrupt
    return store.layout.draft("demo_stage", demo_key().hex) / "scratch" / "state.7"


def recalled(store: Store, name: str = "state.7", device: str = "cpu", frames: int = 6) -> np.ndarray[Any, Any] | None:
    """What the next draft recalls."""
    found = None
    with stopped(), store.draft(demo_key(), demo_schema(frames)) as draft:
        draft.provenance.update(device=device)
        found = draft.recall(name)
        raise KeyboardInterrupt
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_what_is_kept_comes_back_to_the_last_bit(store: Store, dtype: str) -> None:
    values = (VALUES * 10).astype(dtype)
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.keep("state.7", values)
        draft.keep("empty", values[:0])
        raise KeyboardInterrupt
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        again, empty = draft.recall("state.7"), draft.recall("empty")
        assert again is not None and again.dtype == values.dtype and again.tobytes() == values.tobytes()
        assert empty is not None and empty.shape == (0, 4, 5)
        assert draft.recall("state.8") is None
        raise KeyboardInterrupt


def test_the_newest_under_a_name_counts_and_what_is_forgotten_is_gone(store: Store, kept: Path) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.keep("state.7", VALUES + 1)
        draft.keep("state.8", VALUES)
        draft.forget("state.8")
        draft.forget("state.9")
        raise KeyboardInterrupt
    with store.draft(demo_key(), demo_schema()) as draft:
        assert np.array_equal(draft.recall("state.7"), VALUES + 1)
        assert draft.recall("state.8") is None
        for part in draft.missing():
            draft.write(part, demo_blocks(part))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "header": lambda data: flipped(data, 5),
    "hash": lambda data: flipped(data, data.index(b'"blake3":"') + 12),
    "shape": lambda data: data.replace(b"(3, 4, 5)", b"(3, 2, 10)").replace(b" \n", b"\n", 1),
    "a value": lambda data: flipped(data, len(data) - 1),
    "half": lambda data: data[: len(data) // 2],
    "header only": lambda data: data[: data.index(b"\n") + 1],
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"\0",
    "pickle": lambda data: data[: data.index(b"\n") + 1] + b"\x80\x04N.",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_absent(store: Store, kept: Path, damage: str) -> None:
    data = kept.read_bytes()
    assert DAMAGE[damage](data) != data
    kept.write_bytes(DAMAGE[damage](data))
    assert recalled(store) is None
    kept.write_bytes(data)
    assert recalled(store) is not None


def test_objects_are_neither_kept_nor_recalled(store: Store, kept: Path) -> None:
    """Not even where the hash is right: what is unpickled may run anything."""
    import io

    data = io.BytesIO()
    np.save(data, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.provenance.update(device="cpu")
        kept.write_bytes(draft._header("state.7", data.getvalue()) + data.getvalue())
        assert draft.recall("state.7") is None
        with pytest.raises(ValueError, match="Object arrays cannot be saved"):
            draft.keep("state.7", np.array([{"a": 1}], dtype=object))
        raise KeyboardInterrupt


def test_what_was_kept_elsewhere_is_absent(store: Store, kept: Path) -> None:
    kept.with_name("state.8").write_bytes(kept.read_bytes())
    assert recalled(store, "state.8") is None, "under another name"
    assert recalled(store, device="cuda") is None, "on another device"
    assert recalled(store) is not None
    other = store.layout.draft("demo_stage", demo_key(steps=51).hex)
    with stopped(), store.draft(demo_key(steps=51), demo_schema()) as draft:
        draft.provenance.update(device="cpu")
        draft.keep("mine", VALUES)
        (other / "scratch" / "state.7").write_bytes(kept.read_bytes())
        assert draft.recall("mine") is not None
        assert draft.recall("state.7") is None, "in another draft"
        raise KeyboardInterrupt


def test_another_promise_drops_it(store: Store, kept: Path) -> None:
    assert recalled(store, frames=8) is None
    assert not kept.exists()


def test_it_is_no_part_of_the_artifact(store: Store, kept: Path, tmp_path: Path) -> None:
    with store.draft(demo_key(), demo_schema()) as draft:
        draft.keep("more", VALUES)
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
    plain = make_demo(Store(tmp_path / "plain"))
    assert draft.artifact.digest == plain.digest
    assert [path for path in store.layout.drafts.iterdir() if path.suffix != ".lock"] == []
    assert draft.artifact.record.files == plain.record.files


def test_what_was_interrupted_inside_says_so(store: Store, kept: Path) -> None:
    assert str(store.explain(demo_key())) == "interrupted inside, goes on where it was"


def test_a_draft_of_what_is_there_keeps_nothing(store: Store) -> None:
    make_demo(store)
    with store.draft(demo_key(), demo_schema()) as draft:
        draft.keep("state.7", VALUES)
        assert draft.recall("state.7") is None
        draft.forget("state.7")
    assert [path for path in store.layout.drafts.iterdir() if path.suffix != ".lock"] == []


def test_a_full_disk_says_so_and_gives_back_the_draft(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = drafts.write_whole

    def full(path: Path, text: Any, durable: bool = False) -> None:
        if path.parent.name == "scratch":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text, durable)

    monkeypatch.setattr(drafts, "write_whole", full)
    with (
        pytest.raises(StorePlaceError, match=r"^the disk is full: demo demo_stage/\w+ needs .* is free; free some"),
        store.draft(demo_key(), demo_schema()) as draft,
    ):
        draft.keep("state.7", VALUES)
    assert not store.layout.draft("demo_stage", demo_key().hex).exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/b", "", ".hidden", "Ä"])
def test_a_name_is_no_path(store: Store, name: str) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for do in (draft.recall, draft.forget, lambda name: draft.keep(name, VALUES)):
            with pytest.raises(AssertionError, match="cannot name what is kept"):
                do(name)
        raise KeyboardInterrupt


WRITER = """
import sys
import numpy as np
from store.store import Store
from tests.store.demo import demo_key, demo_schema
with Store(sys.argv[1]).draft(demo_key(), demo_schema()) as draft:
    for number in range(1_000_000):
        draft.keep("state.7", np.full((1 << 18,), number, np.float32))
        if number == 1:
            print("here", flush=True)
"""


def test_a_writer_that_is_killed_leaves_one_value_or_the_other(store: Store) -> None:
    """Killed at some moment of writing a megabyte over and over: what is recalled is one whole array of them."""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, store.root], stdout=subprocess.PIPE, cwd=ROOT)
        assert writer.stdout is not None and writer.stdout.readline() == b"here\n"
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        with stopped(), store.draft(demo_key(), demo_schema()) as draft:
            values = draft.recall("state.7")
            assert values is not None and values.shape == (1 << 18,) and (values == values[0]).all()
            scratch = store.layout.draft("demo_stage", demo_key().hex) / "scratch"
            assert [path.name for path in scratch.iterdir()] == ["state.7"], "what was half written is swept away"
            raise KeyboardInterrupt


def test_drafts_have_what_stages_ask_of_a_scratch() -> None:
    from stages.editing.resuming import Scratch

    assert {name for name in vars(Scratch) if not name.startswith("_")} <= set(dir(Draft))

"""Summaries of thousands of records are read once: the file that keeps them is a cache, and says nothing untrue."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import store.index as index_module
from store.store import Store
from store.summaries import Summary, read_summary
from tests.store.demo import demo_key, make_demo

Read = list[Path]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The records that were opened for their summaries."""
    opened: Read = []

    def counted(path: Path) -> Summary | None:
        opened.append(path)
        return read_summary(path)

    monkeypatch.setattr(index_module, "read_summary", counted)
    return opened


@pytest.fixture
def filled(store: Store) -> Store:
    """A store with three records."""
    for steps in (50, 51, 52):
        make_demo(store, demo_key(steps=steps))
    return store


def again(store: Store) -> Store:
    """The store as another process opens it."""
    return Store(store.root)


def index_file(store: Store) -> Path:
    return store.layout.hashes / "summaries-demo_stage.jsonl"


def directly(store: Store) -> list[Summary | None]:
    return [read_summary(path) for path in store.record_files()]


def test_records_are_opened_once(filled: Store, read: Read) -> None:
    assert list(filled.summaries()) == directly(filled) and len(read) == 3
    for store in (filled, again(filled)):
        assert list(store.summaries()) == directly(filled)
    explanation = again(filled).explain(demo_key(steps=53))
    assert explanation is not None and "→ 53" in str(explanation)
    assert len(read) == 3, "neither a list nor an explanation opens them again"
    make_demo(filled, demo_key(steps=54))
    assert list(again(filled).summaries()) == directly(filled) and len(read) == 4


def test_an_explanation_names_the_same_nearest_with_and_without(filled: Store) -> None:
    first = filled.explain(demo_key(steps=53))
    assert again(filled).explain(demo_key(steps=53)) == first
    index_file(filled).unlink()
    assert again(filled).explain(demo_key(steps=53)) == first


def test_a_record_that_was_replaced_or_removed_is_not_what_it_was(filled: Store, read: Read) -> None:
    list(filled.summaries())
    path = filled.layout.record("demo_stage", demo_key(steps=51).hex)
    written = json.loads(path.read_text())
    path.unlink()
    assert len(list(again(filled).summaries())) == 2
    path.write_text(json.dumps({**written, "seconds": 77.0}))
    read.clear()
    assert [s.seconds for s in again(filled).summaries() if s.hex == path.stem] == [77.0] and read == [path]


def test_a_damaged_record_is_told_each_time_and_never_kept(filled: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = filled.layout.record("demo_stage", demo_key(steps=51).hex)
    path.write_text("{")
    for store in (filled, again(filled)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(list(store.summaries())) == 2
        assert str(path) in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],  # a writer was killed
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b'"summary"', b'"summery"'),
        lambda data: data.replace(b'"stamp": [', b'"stamp": [1, '),
        lambda data: b"[" * 10_000 + b"\n" + data,
    ],
    ids=["cut", "zeros", "other fields", "other stamps", "nested"],
)
def test_a_damaged_index_costs_time_and_nothing_else(filled: Store, damage: Callable[[bytes], bytes]) -> None:
    list(filled.summaries())
    file = index_file(filled)
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert list(again(filled).summaries()) == directly(filled)


def test_the_index_does_not_grow_with_what_is_replaced(filled: Store) -> None:
    path = filled.layout.record("demo_stage", demo_key(steps=51).hex)
    written = path.read_bytes()
    for _ in range(150):
        path.unlink()
        path.write_bytes(written)
        assert len(list(again(filled).summaries())) == 3
    assert len(index_file(filled).read_bytes().splitlines()) < 120

"""Parts that other machines left in a store: adopted whole or not at all, the first one counts, none trusted unread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.collect import Limits, collect, drafts
from store.errors import StorePlaceError
from store.keys import ArtifactKey
from store.parts import abandoned, adopt_part, folder_of, loose, published
from store.schemas import Block, Frozen, Schema, Variable
from store.store import Store
from store.verify import verify
from tests.store.places import Place

FRAMES = Variable(dims=("frame", "x"), shape=(10, 3), dtype="float32", chunks=(4, 3), finite=True)
SCHEMA = Schema(artifact="numbers", variables={"values": FRAMES}, parts=("frame", 4))
PARTS = SCHEMA.divided()


class Spec(Frozen):
    of: str = "parts"


KEY = ArtifactKey.of("count", 1, Spec(), {})


def values(part: range) -> np.ndarray[Any, Any]:
    return np.arange(part.start * 3, part.stop * 3, dtype=np.float32).reshape(-1, 3)


def leave(store: Store, number: int, schema: Schema = SCHEMA, plus: float = 0) -> bool:
    """Do what a worker does; whether it had to compute."""
    with loose(store, KEY, schema, number) as draft:
        missing = draft.missing()
        for part in missing:
            draft.write(part, [Block("values", (part.start, 0), values(part) + np.float32(plus))])
        draft.note = {"cut": {"a long prompt": "prompt"}}
    return bool(missing)


@pytest.fixture(params=["folder", "bucket"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """A store that several machines share, as each of them has it: the same folder, or a place behind a cache."""
    if request.param == "folder":
        return lambda name: Store(tmp_path / "store")
    place = Place(f"memory://{tmp_path}", tmp_path)
    return place.machine


def test_parts_of_two_machines_become_the_artifact_that_one_writes(
    machine: Callable[[str], Store], tmp_path: Path
) -> None:
    alone = Store(tmp_path / "alone")
    with alone.draft(KEY, SCHEMA) as draft:
        for part in draft.missing():
            draft.write(part, [Block("values", (part.start, 0), values(part))])
    assert leave(machine("one"), 2)
    assert leave(machine("two"), 0)
    parent = machine("parent")
    with parent.draft(KEY, SCHEMA) as gathering:
        assert gathering.missing() == [PARTS[1]], "what was left before it began is taken up"
        assert leave(machine("two"), 1)
        assert adopt_part(parent.parts_place(), gathering, 1)
        assert gathering.missing() == []
        assert gathering.cut == {"a long prompt": "prompt"}
        gathering.gathers = True
    assert gathering.artifact.digest == draft.artifact.digest
    assert not parent.parts_place().list("parts")
    assert [each for each in drafts(parent) if each.path.is_dir()] == []


def test_a_part_that_is_there_is_not_computed_again(machine: Callable[[str], Store]) -> None:
    assert leave(machine("one"), 0)
    assert not leave(machine("two"), 0)
    assert not leave(machine("one"), 0)


def test_the_first_of_two_that_computed_the_same_counts(machine: Callable[[str], Store]) -> None:
    with loose(machine("one"), KEY, SCHEMA, 0) as late:
        late.write(PARTS[0], [Block("values", (0, 0), values(PARTS[0]) + np.float32(5))])
        place = machine("two").parts_place()
        other = Store(machine("two").root.with_name("elsewhere"))  # no lock reaches there
        other.parts_place = lambda: place  # type: ignore[method-assign]
        assert leave(other, 0)
        first = published(place, KEY, SCHEMA, 0)
    assert published(place, KEY, SCHEMA, 0) == first
    assert first is not None
    assert {name.split("/")[3] for name in place.list(f"{folder_of(KEY)}/0")} == {first.at}


def test_a_killed_gatherer_keeps_what_it_has_and_the_next_takes_the_rest(machine: Callable[[str], Store]) -> None:
    for number in (0, 1):
        leave(machine("one"), number)
    with pytest.raises(KeyboardInterrupt), machine("parent").draft(KEY, SCHEMA):
        raise KeyboardInterrupt
    assert not leave(machine("one"), 0), "until the commit its workers know what is done"
    leave(machine("one"), 2)
    with machine("parent").draft(KEY, SCHEMA) as draft:
        assert draft.missing() == []


def test_work_on_a_part_that_was_stopped_is_gone_on_with(machine: Callable[[str], Store]) -> None:
    def stopped() -> None:
        with loose(machine("one"), KEY, SCHEMA, 1) as draft:
            draft.keep("newest", np.ones(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [each.key for each in drafts(machine("one"))] == [KEY.hex]
    with loose(machine("one"), KEY, SCHEMA, 1) as draft:
        kept = draft.recall("newest")
        assert kept is not None
        draft.write(PARTS[1], [Block("values", (4, 0), values(PARTS[1]))])
    assert not drafts(machine("one"))


def test_what_a_worker_left_that_was_killed_before_its_marker_goes_with_the_commit(
    machine: Callable[[str], Store],
) -> None:
    leave(machine("one"), 0)
    place = machine("one").parts_place()
    place.delete(f"{folder_of(KEY)}/0.json")
    assert place.list("parts"), "files that no marker names"
    with machine("parent").draft(KEY, SCHEMA) as draft:
        assert draft.missing() == PARTS
        for part in PARTS:
            draft.write(part, [Block("values", (part.start, 0), values(part))])
    assert not place.list("parts")


def test_a_part_of_another_promise_is_none(machine: Callable[[str], Store]) -> None:
    shorter = SCHEMA.model_copy(update={"variables": {"values": FRAMES.model_copy(update={"shape": (9, 3)})}})
    leave(machine("one"), 0, shorter)
    with machine("parent").draft(KEY, SCHEMA) as draft:
        assert draft.missing() == PARTS
        assert leave(machine("one"), 0), "it takes the place of the other"
        assert adopt_part(machine("parent").parts_place(), draft, 0)
        for part in draft.missing():
            draft.write(part, [Block("values", (part.start, 0), values(part))])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("at", "../../../../etc"), ("at", "0" * 15), ("host", "\x1b[31mred"), ("pid", "1"), ("marker", {}),
        ("files", "../secret"), ("files", "values/c/1/0"), ("written", 11), ("written", 13), ("grown", 3), ("more", 1),
    ],
)  # fmt: skip
def test_a_marker_that_no_worker_can_have_written_is_refused(
    machine: Callable[[str], Store], field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leave(machine("one"), 0)
    place, name = machine("one").parts_place(), f"{folder_of(KEY)}/0.json"
    said = json.loads(place.get(name) or b"")
    if field == "files":
        said["marker"]["files"][value] = said["marker"]["files"]["values/c/0/0"]
    elif field == "written":
        said["marker"]["written"]["values"] = value
    elif field == "grown":
        said["marker"]["grown"]["values"] = value
    else:
        said[field] = value
    place.put(name, json.dumps(said).encode())
    with machine("parent").draft(KEY, SCHEMA) as draft:
        assert draft.missing() == PARTS
        for part in PARTS:
            draft.write(part, [Block("values", (part.start, 0), values(part))])
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
def test_a_part_whose_files_are_not_what_its_marker_says_is_done_again(
    machine: Callable[[str], Store], harm: str
) -> None:
    leave(machine("one"), 0)
    place = machine("one").parts_place()
    file = next(name for name in place.list(folder_of(KEY)) if "/c/" in name)
    content = place.get(file)
    assert content is not None
    place.delete(file)
    if harm != "remove":
        harmed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "grow": content + b"\0"}[harm]
        place.put(file, harmed)
    with machine("parent").draft(KEY, SCHEMA) as draft:
        assert draft.missing() == PARTS
        assert published(place, KEY, SCHEMA, 0) is None
        for number, part in enumerate(PARTS):
            assert leave(machine("one"), number)
            assert adopt_part(place, draft, number), part


def test_collecting_leaves_parts_that_may_be_wanted_and_removes_old_ones(
    machine: Callable[[str], Store],
) -> None:
    leave(machine("one"), 0)
    assert collect(machine("two"), Limits()).leftovers == ()
    time.sleep(1)
    old = Limits(older_than=0)
    with machine("parent").lease([KEY.hex]):
        assert collect(machine("two"), old).leftovers == ()
    assert [each.name for each in collect(machine("two"), old, dry_run=True).leftovers] == [folder_of(KEY)]
    assert leave(machine("one"), 1), "what was only said to be removed is there"
    collect(machine("two"), old)
    assert not machine("one").parts_place().list("parts")
    assert abandoned(machine("one").parts_place(), 0, lambda key: False) == []


def test_verify_finds_nothing_wrong_with_parts_on_their_way(machine: Callable[[str], Store]) -> None:
    leave(machine("one"), 0)
    assert verify(machine("one")).ok


def test_a_part_that_cannot_be_left_is_one_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "parts").write_text("no folder")
    with pytest.raises(StorePlaceError, match="cannot write parts"):
        leave(store, 0)

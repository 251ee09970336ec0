"""One store for many machines: what one commits all find, whole; what is damaged or half sent nobody does."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from store.artifact import Artifact
from store.backends import ObstoreBackend, Patience
from store.errors import InputError, StoreError, StorePlaceError
from store.keys import ArtifactKey
from store.remote import RemoteArtifact, RemoteStore, open_store
from store.store import Store
from tests.store import test_store as promises
from tests.store.demo import demo_blocks, demo_key, demo_schema, demo_values, make_demo, stopped
from tests.store.places import SOON, BadLine, Place, free_port, use_s3

PARTS = demo_schema().divided()


def computing(store: Store, key: ArtifactKey | None = None, fps: float = 24.0) -> tuple[list[range], Artifact]:
    """Make the demo as a run does; returns the parts that had to be computed, and the artifact."""
    computed = []
    with store.draft(key or demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
            computed.append(part)
        if computed:
            draft.attrs["fps"] = fps
    return computed, draft.artifact


def fetched(store: RemoteStore) -> list[str]:
    """Digests of the objects that are on this machine."""
    folder = store.root / "objects"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def is_demo(artifact: Artifact | None) -> bool:
    """Whether every value can be read, and is the right one."""
    assert artifact is not None
    for name in demo_schema().variables:
        np.testing.assert_array_equal(artifact[name][:], np.concatenate([demo_values(name, part) for part in PARTS]))
    return True


def flip(place: Place, name: str) -> None:
    data = bytearray(place.backend().get(name) or b"")
    data[len(data) // 2] ^= 1
    place.backend().put(name, bytes(data))


# two machines


def test_what_one_machine_made_another_finds_and_computes_nothing(place: Place) -> None:
    made = make_demo(place.machine("one"))
    other = place.machine("two")
    found = other.find(demo_key())
    assert found is not None
    assert found.digest == made.digest
    assert fetched(other) == [], "it is fetched when it is read"
    assert is_demo(found)
    assert fetched(other) == [made.digest]
    assert computing(other)[0] == []
    assert [record.hex for record in other.records()] == [made.key]
    assert other.resolve(made.key[:10]).digest == made.digest
    assert other.verify(found.record) == []
    assert found.path.parent == other.root / "objects"


def test_a_whole_hexadecimal_key_is_found_too(memory: Place) -> None:
    made = make_demo(memory.machine("one"))
    assert memory.machine("two").find(made.key) == memory.machine("two").find(demo_key())
    assert memory.machine("two").find("0" * 64) is None


def test_the_place_is_a_store_of_plain_zarr_groups(place: Place) -> None:
    artifact = make_demo(place.machine())
    backend = place.backend()
    assert backend.get("format") == (place.machine("one").layout.format.read_bytes())
    assert {name.split("/")[0] for name in backend.list("")} == {"format", "keys", "leases", "objects"}
    if isinstance(backend, ObstoreBackend):
        objects = zarr.storage.ObjectStore(backend.objects, read_only=True)
        group = zarr.open_group(objects, path=f"objects/{artifact.digest}", mode="r")
        np.testing.assert_array_equal(group["rgb"][:], artifact["rgb"][:])
        assert dict(group.attrs) == {"artifact": "demo", "scale": 0.18215, "fps": 24.0}
    else:
        folder = place.folder / place.url.rpartition("/")[2] / "objects" / artifact.digest
        np.testing.assert_array_equal(xarray.open_zarr(folder)["rgb"], artifact["rgb"][:])


def test_a_shared_folder_is_a_store_on_its_own(tmp_path: Path) -> None:
    place = Place(f"file://{tmp_path}/shared", tmp_path)
    made = make_demo(place.machine())
    assert is_demo(Store(tmp_path / "shared").find(made.key))


def test_the_machine_that_waits_gets_what_the_first_made(place: Place) -> None:
    begun, told = threading.Event(), []

    def second() -> None:
        begun.wait()
        told.append(computing(place.machine("two")))

    waiting = threading.Thread(target=second)
    waiting.start()
    with place.machine("one").draft(demo_key(), demo_schema()) as draft:
        draft.write(PARTS[0], demo_blocks(PARTS[0]))
        begun.set()
        while not place.names("locks"):
            time.sleep(0.01)
        waiting.join(2 * SOON.stale)  # signs of life keep the turn
        assert waiting.is_alive()
        assert place.machine("three").find(demo_key()) is None
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
    waiting.join(30)
    assert [(computed, artifact.digest) for computed, artifact in told] == [([], draft.artifact.digest)]
    assert place.names("locks") == []


def test_the_turn_of_a_machine_that_died_is_taken_over(memory: Place) -> None:
    memory.machine().check_writable()
    memory.backend().put(
        "locks/demo_stage-" + demo_key().hex + ".json", b'{"host": "gone", "token": "0", "cache": "x"}'
    )
    assert computing(memory.machine())[0] == PARTS
    assert memory.names("locks") == []


@pytest.mark.parametrize("sign", [b"", b"{", b"[1]", b'{"host": ["x"], "time": "never"}', b"[" * 100_000])
def test_a_turn_that_cannot_be_read_is_taken_over(memory: Place, sign: bytes) -> None:
    memory.machine().check_writable()
    memory.backend().put("locks/demo_stage-" + demo_key().hex + ".json", sign)
    memory.backend().put("leases/a.json", sign)
    assert computing(memory.machine())[0] == PARTS
    assert memory.machine().leases() == set()


def test_a_machine_that_was_killed_takes_up_its_own_turn_at_once(memory: Place) -> None:
    machine = open_store(memory.url, cache=memory.folder / "one", patience=Patience(beat=5, stale=10**6))
    assert isinstance(machine, RemoteStore)
    machine.check_writable()
    name = f"locks/demo_stage-{demo_key().hex}.json"
    memory.backend().put(name, json.dumps({"cache": machine._cache_name(), "token": "0"}).encode())
    assert computing(machine)[0] == PARTS


def test_the_first_commit_counts_and_the_second_is_dropped(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Where a turn was lost, two machines may compute the same key, and a GPU's results may differ."""
    late = open_store(place.url, cache=place.folder / "late", patience=replace(SOON, beat=60))  # no sign comes back
    with late.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 25.0
        for name in place.names("locks"):
            place.backend().delete(name)
        _, first = computing(place.machine("first"))
    assert draft.artifact.digest == first.digest
    assert draft.artifact.attrs["fps"] == 24.0
    assert "another machine committed" in caplog.text
    found = place.machine("late").find(demo_key())
    assert found is not None and found.attrs["fps"] == 24.0 and is_demo(found)


def test_a_record_whose_object_was_collected_gives_way_to_a_new_one(place: Place) -> None:
    one, two = place.machine("one"), place.machine("two")
    old = make_demo(one)
    one.remove_object(old.digest)
    assert place.names("objects") == []
    assert two.find(demo_key()) is None
    assert str(two.explain(demo_key())) == "collected"
    computed, new = computing(two, fps=25.0)
    assert computed == PARTS
    assert new.digest != old.digest
    found = place.machine("three").find(demo_key())
    assert found is not None and found.digest == new.digest and is_demo(found)


def test_another_machine_is_told_why_it_is_a_miss(place: Place) -> None:
    make_demo(place.machine("one"))
    two = place.machine("two")
    said = two.explain(demo_key(steps=100))
    assert said is not None
    assert (str(said), said.nearest) == ("steps 50 → 100", demo_key().hex)
    assert two.explain(demo_key()) is None
    assert two.knows(demo_key()) and not two.knows(demo_key(steps=100))


def test_runs_of_all_machines_are_listed(place: Place) -> None:
    first = place.machine("one").save_run({"prompt": "ä"})
    second = place.machine("two").save_run({"prompt": "b"})
    assert [run["id"] for run in place.machine("three").runs()] == sorted([first, second], reverse=True)
    assert place.machine("four").load_run(first) == {"prompt": "ä", "id": first}
    place.backend().put("runs/20260101-000000-000000.json", b"[" * 100_000)
    place.backend().put("runs/..%2f..%2fevil.json", b"{}")
    assert len(place.machine("five").runs()) == 2


def test_leases_and_pins_are_seen_by_all(place: Place) -> None:
    one, two = place.machine("one"), place.machine("two")
    with one.lease([demo_key(), "ab" * 32]):
        time.sleep(3 * SOON.beat)
        assert two.leases() == {demo_key().hex, "ab" * 32}
    assert two.leases() == set()
    one.pin("cd" * 32)
    assert two.pins() == {"cd" * 32}
    two.unpin("cd" * 32)
    assert one.pins() == set()
    artifact = make_demo(one)
    assert two.objects() == {}, "what was just sent may have no record that a collection has read"
    for name in place.names("leases"):
        place.backend().delete(name)
    assert two.objects() == {artifact.digest: artifact.nbytes}
    assert two.held() == {artifact.digest}


def test_what_another_machine_is_sending_is_no_orphan(memory: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    send = RemoteStore._send_record

    def between(store: RemoteStore, *given: Any) -> Any:
        seen.append((memory.names("objects") != [], memory.machine("two").objects(), memory.names("keys")))
        return send(store, *given)

    monkeypatch.setattr(RemoteStore, "_send_record", between)
    make_demo(memory.machine("one"))
    assert seen == [(True, {}, [])]


def test_a_sign_of_long_ago_is_forgotten(memory: Place) -> None:
    memory.machine().check_writable()
    memory.backend().put("leases/old.json", json.dumps({"keys": ["ab" * 32], "time": time.time() - 3600}).encode())
    assert memory.machine().leases() == set()
    assert memory.names("leases") == []


def test_what_another_machine_made_anew_is_no_longer_damaged(place: Place) -> None:
    artifact = make_demo(place.machine("one"))
    name = f"objects/{artifact.digest}/rgb/c/1/0/0"
    sound = place.backend().get(name) or b""
    flip(place, name)
    two = place.machine("two")
    found = two.find(demo_key())
    assert found is not None and two.fetch(found) is None and two.find(demo_key()) is None
    place.backend().put(name, sound)
    assert is_demo(two.find(demo_key()))


# damage


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_file_that_is_not_whole_there_is_a_miss_that_says_so(place: Place, damage: str) -> None:
    artifact = make_demo(place.machine("one"))
    name = f"objects/{artifact.digest}/latents/c/0/0"
    size = place.backend().list("objects")[name]
    place.backend().delete(name)
    if damage == "cut":
        place.backend().put(name, b"x")
    two = place.machine("two")
    said = "file latents/c/0/0 " + ("is missing in" if damage == "lost" else f"has 1 bytes instead of {size} in")
    assert two.find(demo_key()) is None
    assert str(two.explain(demo_key())) == f"damaged: {said} {place.url}"
    assert two.verify(artifact.record) == ["latents/c/0/0"]
    assert computing(two)[0] == PARTS
    assert is_demo(place.machine("three").find(demo_key()))


def test_a_flipped_bit_is_named_then_a_miss_then_healed_for_all(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    artifact = make_demo(place.machine("one"))
    flip(place, f"objects/{artifact.digest}/rgb/c/1/0/0")
    two = place.machine("two")
    found = two.find(demo_key())
    assert found is not None, "its sizes are right"
    assert two.verify(found.record) == ["rgb/c/1/0/0"]
    with pytest.raises(StoreError, match=rf"file rgb/c/1/0/0 is lost or damaged in {place.url}; it counts as a miss"):
        found["rgb"]
    assert fetched(two) == []
    assert two.find(demo_key()) is None
    assert "rgb/c/1/0/0 has other bytes" in str(two.explain(demo_key()))
    assert computing(two)[0] == PARTS
    assert is_demo(two.find(demo_key()))
    three = place.machine("three").find(demo_key())
    assert three is not None and place.machine("three").fetch(three) is three and is_demo(three)


def test_what_turns_out_damaged_can_be_asked_for_before_it_is_read(memory: Place) -> None:
    artifact = make_demo(memory.machine("one"))
    flip(memory, f"objects/{artifact.digest}/rgb/c/1/0/0")
    two = memory.machine("two")
    found = two.find(demo_key())
    assert found is not None and two.fetch(found) is None


def test_a_file_that_swells_is_not_fetched(memory: Place) -> None:
    artifact = make_demo(memory.machine("one"))
    two = memory.machine("two")
    found = two.find(demo_key())
    memory.backend().put(f"objects/{artifact.digest}/rgb/c/1/0/0", b"x" * 10**6)
    with pytest.raises(StoreError, match="file rgb/c/1/0/0 is lost or damaged"):
        found["rgb"]  # type: ignore[index]


@pytest.mark.parametrize("damage", ["{", "[" * 100_000, "outside", "swapped", "another stage"])
def test_a_hostile_record_is_a_miss_with_a_warning_and_is_made_again(
    memory: Place, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_demo(memory.machine("one"))
    name = f"keys/demo_stage/{demo_key().hex}.json"
    raw = json.loads(memory.backend().get(name) or b"")
    if damage == "outside":
        raw["files"]["../../outside"] = raw["files"].pop("latents/c/0/0")
    elif damage == "swapped":
        raw["recipe"]["spec"]["steps"] = 51
    elif damage == "another stage":
        raw["stage"] = "../../outside"
    memory.backend().put(name, (json.dumps(raw) if len(damage) in (7, 13) else damage).encode())
    two = memory.machine("two")
    with caplog.at_level(logging.WARNING):
        assert two.find(demo_key()) is None
        assert list(two.records()) == []
    assert f"{memory.url}/{name}" in caplog.text
    assert computing(two)[0] == PARTS
    assert is_demo(memory.machine("three").find(demo_key()))
    assert not list(memory.folder.rglob("outside"))


def test_names_that_are_no_record_are_passed_over(memory: Place) -> None:
    made = make_demo(memory.machine("one"))
    for name in ("keys/../x.json", "keys/demo_stage/short.json", f"keys/a/b/{made.key}.json", "keys/readme"):
        if ".." not in name:
            memory.backend().put(name, b"{}")
    assert [record.hex for record in memory.machine("two").records()] == [made.key]


def test_a_copy_that_rotted_in_the_cache_is_fetched_again(memory: Place) -> None:
    machine = memory.machine()
    artifact = make_demo(machine)
    chunk = artifact.path / "latents" / "c" / "0" / "0"
    chunk.unlink()
    assert is_demo(memory.machine().find(demo_key()))
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(data)
    again = memory.machine()
    assert again.verify(artifact.record) == [], "the place has it whole"
    assert fetched(again) == []
    assert is_demo(again.find(demo_key()))


# a place that fails


class Failing:
    """A backend whose line is lost after so many requests."""

    def __init__(self, backend: Any, after: int) -> None:
        self.backend, self.left = backend, after

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self.backend, name)
        if not callable(asked):
            return asked

        def ask(*given: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise StorePlaceError("the line is lost")
            return asked(*given)

        return ask


def requests_of_a_run(place: Place) -> int:
    machine = place.machine("counting")
    machine._backend = Failing(machine._backend, 10**6)  # type: ignore[assignment]
    computing(machine)
    return 10**6 - machine._backend.left  # type: ignore[attr-defined]


def test_wherever_the_line_is_lost_nothing_is_half_visible_and_the_next_run_computes_nothing_again(
    tmp_path: Path,
) -> None:
    in_all = requests_of_a_run(Place(f"memory://{tmp_path}/counting", tmp_path))
    assert in_all > 30
    for after in range(0, in_all, 1 + in_all // int(os.environ.get("TOKENFLOW_LOST_LINES", "12"))):
        place = Place(f"memory://{tmp_path}/{after}", tmp_path / str(after))
        machine = place.machine("one")
        machine._backend = Failing(machine._backend, after)  # type: ignore[assignment]
        began = []
        try:
            with machine.draft(demo_key(), demo_schema()) as draft:
                began = draft.missing()
                for part in began:
                    draft.write(part, demo_blocks(part))
                draft.attrs["fps"] = 24.0
        except StorePlaceError:
            pass
        seen = place.machine("two").find(demo_key())
        assert seen is None or is_demo(seen)
        for name in place.names("locks"):
            place.backend().delete(name)
        computed, _ = computing(place.machine("one"))
        assert computed == ([] if began else PARTS), f"after {after} requests"
        assert is_demo(place.machine("three").find(demo_key()))
        assert computing(place.machine("two"))[0] == []
        assert not list((place.machine("one").root / "owed").glob("*"))


def test_a_commit_that_was_killed_before_it_was_sent_is_sent_by_the_next_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, stopped():
        patch.setattr(RemoteStore, "_send", lambda store, record: (_ for _ in ()).throw(KeyboardInterrupt))
        computing(place.machine("one"))
    assert place.names("objects") == place.names("keys") == []
    assert place.machine("two").find(demo_key()) is None
    assert is_demo(place.machine("one").find(demo_key()))
    assert is_demo(place.machine("two").find(demo_key()))


def test_what_rotted_before_it_was_sent_is_never_sent(memory: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, stopped():
        patch.setattr(RemoteStore, "_send", lambda store, record: (_ for _ in ()).throw(KeyboardInterrupt))
        computing(memory.machine("one"))
    chunk = next(memory.machine("one").root.glob("objects/*/rgb/c/1/0/0"))
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert memory.machine("one").find(demo_key()) is None
    assert memory.names("keys") == []
    assert computing(memory.machine("one"))[0] == PARTS
    assert is_demo(memory.machine("two").find(demo_key()))


@pytest.mark.parametrize("fault", ["drop", "busy", "lose"])
def test_a_run_over_a_bad_line_comes_to_its_end(far: Place, line: BadLine, fault: str) -> None:
    machine = far.machine("one")
    setattr(line, fault, 3)
    assert computing(machine)[0] == PARTS
    setattr(line, fault, 3)
    assert is_demo(far.machine("two").find(demo_key()))


def test_a_server_that_goes_away_stops_the_run_and_the_next_one_sends(far: Place, line: BadLine) -> None:
    machine = far.machine("one")
    stops = pytest.raises(StorePlaceError, match=rf"the store {far.url} failed while .*run again")
    with stops, machine.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        line.busy = 10**6
        draft.attrs["fps"] = 24.0
    line.well()
    assert far.machine("two").find(demo_key()) is None
    assert is_demo(far.machine("one").find(demo_key()))
    assert is_demo(far.machine("two").find(demo_key()))


def test_what_is_on_this_machine_is_found_without_the_place(
    far: Place, line: BadLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_demo(far.machine())
    use_s3(free_port(), monkeypatch)
    alone = far.machine()
    assert is_demo(alone.find(demo_key()))
    for ask in (lambda: alone.find(demo_key(steps=51)), lambda: list(alone.records()), alone.check_writable):
        with pytest.raises(StorePlaceError, match=r"cannot be reached|connection was lost"):
            ask()
    alone.close()


def test_a_place_with_other_things_or_another_layout_is_no_store(place: Place) -> None:
    place.backend().put("holiday.mp4", b"x")
    with pytest.raises(StorePlaceError, match=r"is no store and not empty \(it holds 'holiday.mp4'\)"):
        place.machine().find(demo_key())
    place.backend().put("format", b"99\n")
    with pytest.raises(StoreError, match="has layout b'99"):
        make_demo(place.machine())
    assert place.names("") == ["format", "holiday.mp4"]


def test_looking_writes_nothing(place: Place) -> None:
    machine = place.machine()
    assert machine.find(demo_key()) is None
    assert list(machine.records()) == machine.runs() == []
    assert machine.check_answers() == "empty, a first run makes a store there"
    assert place.names("") == []
    machine.check_writable()
    assert place.names("") == ["format"]
    assert machine.check_answers() == place.machine().check_answers() == "a store"


# the cache


def test_the_cache_keeps_to_its_size_and_what_was_dropped_comes_back(place: Place) -> None:
    one = place.machine("one")
    made = [computing(one, demo_key(steps), fps=steps + 1)[1] for steps in range(4)]
    room = made[0].nbytes * 2 + 100
    two = place.machine("two", room)
    for artifact in made:
        assert is_demo(two.find(artifact.key))
    assert len(fetched(two)) == 4, "what a process reads stays, or it would read fill values"
    two.close()
    assert fetched(two) == sorted(artifact.digest for artifact in made[2:])
    again = place.machine("two", room)
    assert is_demo(again.find(made[0].key))
    again.close()
    assert fetched(again) == sorted(artifact.digest for artifact in (made[0], made[3]))


def test_what_a_lease_or_another_process_names_is_not_dropped(memory: Place) -> None:
    one = memory.machine("one")
    made = [computing(one, demo_key(steps), fps=steps + 1)[1] for steps in range(3)]
    one.close()
    reading, leasing, dropping = memory.machine("one"), memory.machine("one"), memory.machine("one", 1)
    assert is_demo(reading.find(made[0].key))
    with leasing.lease([demo_key(1)]):
        dropping.close()
        assert fetched(dropping) == sorted(artifact.digest for artifact in made[:2])
    leasing.close()
    reading.close()
    dropping.trim()
    assert fetched(dropping) == []


def test_what_only_this_machine_has_is_never_dropped(memory: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.machine("one", 1)
    with monkeypatch.context() as patch, stopped():
        patch.setattr(RemoteStore, "_send", lambda store, record: (_ for _ in ()).throw(KeyboardInterrupt))
        computing(machine)
    machine.close()
    assert len(fetched(machine)) == 1
    assert is_demo(memory.machine("one").find(demo_key()))


def test_a_fetch_that_was_stopped_goes_on(memory: Place) -> None:
    artifact = make_demo(memory.machine("one"))
    two = memory.machine("two")
    found = two.find(demo_key())
    assert found is not None
    two._backend = Failing(two._backend, 5)  # type: ignore[assignment]
    with pytest.raises(StorePlaceError):
        found["rgb"]
    assert fetched(two) == []
    kept = [path for path in (two.root / "drafts").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert kept
    three = memory.machine("two")
    counting = Failing(three._backend, 10**6)
    three._backend = counting  # type: ignore[assignment]
    assert is_demo(three.find(demo_key()))
    assert 10**6 - counting.left < len(artifact.record.files)


# what a folder promises


OF_A_FOLDER = [
    promises.test_an_artifact_reads_like_a_mapping_of_arrays,
    promises.test_a_growing_dimension_takes_its_size_from_what_came,
    promises.test_growing_variables_must_agree_on_their_length,
    promises.test_a_later_part_reads_the_earlier_ones,
    promises.test_parts_may_be_written_by_threads,
    promises.test_equal_bytes_under_two_keys_are_one_object,
    promises.test_the_record_tells_recipe_files_seconds_and_provenance,
    promises.test_attributes_that_are_not_json_are_refused,
    promises.test_a_prefix_names_one_record,
    promises.test_a_miss_says_which_fields_differ,
    promises.test_a_miss_says_which_field_of_a_nested_spec_differs,
    promises.test_a_miss_follows_its_inputs_to_the_cause,
    promises.test_an_interrupted_draft_is_explained,
    promises.test_runs_are_kept_newest_first,
    promises.test_space_is_checked_before_work,
    promises.test_every_dtype_comes_back_through_plain_xarray_without_a_warning,
]


@pytest.mark.parametrize("promise", OF_A_FOLDER, ids=lambda promise: promise.__name__.removeprefix("test_"))
def test_a_shared_store_keeps_what_a_folder_promises(memory: Place, promise: Callable[[Store], None]) -> None:
    promise(memory.machine())


def test_the_address_says_what_opens(tmp_path: Path) -> None:
    assert type(open_store(str(tmp_path / "store"))) is Store
    shared = open_store("memory://x/", cache=tmp_path)
    assert isinstance(shared, RemoteStore)
    assert (shared.place, str(tmp_path) in str(shared.root)) == ("memory://x", True)
    assert (shared.root / "address").read_text() == "memory://x\n"
    with pytest.raises(InputError):
        open_store("s3://key:secret@bucket/x", cache=tmp_path)


def test_an_artifact_of_a_shared_store_is_one(memory: Place) -> None:
    made = make_demo(memory.machine())
    assert isinstance(made, RemoteArtifact)
    assert made == memory.machine().find(demo_key())

"""Whatever happens to a file of the store is named, with what it belongs to and what was made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from store import artifact as artifact_module
from store.artifact import Artifact
from store.errors import InputError, StoreError
from store.keys import ArtifactKey
from store.store import Store
from store.verify import Verdict, in_parallel, repair, verify
from tests.store.demo import DemoSpec, demo_blocks, demo_key, demo_schema, demo_values, make_demo, stopped


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    other = path.parents[1] / "1" / "0"
    other.rename(path.with_name("away"))
    path.rename(other)
    path.with_name("away").rename(path)


def link(path: Path) -> None:
    away = path.parents[5] / "away"
    path.rename(away)
    path.symlink_to(away)


def restore_with(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "deleted": (Path.unlink, {"latents/c/0/0": "is missing"}),
    "truncated": (lambda path: os.truncate(path, 3), {"latents/c/0/0": "has 3 bytes instead of 12"}),
    "flipped": (flip, {"latents/c/0/0": "has other bytes than were written"}),
    "swapped": (swap, dict.fromkeys(("latents/c/0/0", "latents/c/1/0"), "has other bytes than were written")),
    "linked": (link, {"latents/c/0/0": "is a link"}),
    "added": (lambda path: path.with_name("9").touch(), {"latents/c/0/9": "is named by no record"}),
    "pipe": (lambda path: os.mkfifo(path.with_name("9")), {"latents/c/0/9": "is neither a file nor a folder"}),
}


def edit_of(key: ArtifactKey, prompt: str) -> ArtifactKey:
    return ArtifactKey(stage="edit_keyframes", version=1, spec={"prompt": prompt}, inputs={"latents": key.hex})


def a_chunk(artifact: Artifact) -> Path:
    return artifact.path / "latents" / "c" / "0" / "0"


def values_of(artifact: Artifact, name: str = "latents") -> np.ndarray:
    return artifact[name][:]


def expected(name: str = "latents") -> np.ndarray:
    return np.concatenate([demo_values(name, part) for part in demo_schema().divided()])


def with_an_edit(store: Store) -> Artifact:
    """The demo, and two artifacts that were made from it, one by way of the other."""
    artifact = make_demo(store)
    schema = demo_schema().model_copy(update={"attrs": {"scale": 1.0}})
    edit = make_demo(store, edit_of(demo_key(), "a red ball"), schema)
    schema = demo_schema().model_copy(update={"attrs": {"scale": 2.0}})
    make_demo(store, ArtifactKey.of("propagate_tokens", 1, DemoSpec(), {"edit": edit.key}), schema)
    return artifact


def test_an_untouched_store_is_found_whole(store: Store) -> None:
    with_an_edit(store)
    read: list[int] = []
    verdict = verify(store, begin=read.append, advance=lambda count: read.append(-count))
    assert verdict.ok
    assert verdict == Verdict(
        artifacts=3, bytes=verdict.bytes, collected=0, damaged=(), records=(), orphans={}, drafts=()
    )
    assert verdict.bytes == read[0] == sum(store.objects().values())
    assert sum(read) == 0


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_artifact_and_what_depends_on_it(store: Store, name: str) -> None:
    damage, files = DAMAGE[name]
    artifact = with_an_edit(store)
    damage(a_chunk(artifact))
    verdict = verify(store)
    assert not verdict.ok
    (found,) = verdict.damaged
    assert found.files == files
    assert [each.key for each in found.artifacts] == [artifact.key]
    assert [(each.stage, each.prompt) for each in found.dependents] == [
        ("edit_keyframes", "a red ball"), ("propagate_tokens", None)
    ]  # fmt: skip
    assert verify(store, [artifact.key[:12]]).damaged == (found,)
    assert verify(store, [edit_of(demo_key(), "a red ball").hex]).ok


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_repaired_is_made_again_and_nothing_else_is(store: Store, name: str) -> None:
    artifact = with_an_edit(store)
    digest = artifact.digest
    DAMAGE[name][0](a_chunk(artifact))
    repaired = repair(store, verify(store))
    assert repaired.ok and len(repaired.dropped) == 1
    assert verify(store).ok
    assert (store.find(demo_key()) is None) == (name not in ("added", "pipe"))
    assert store.knows(demo_key())
    assert store.find(edit_of(demo_key(), "a red ball")) is not None
    assert make_demo(store).digest == digest
    assert verify(store).ok
    np.testing.assert_array_equal(values_of(store.find(demo_key())), expected())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["deleted", "truncated", "flipped", "swapped", "linked"])
def test_damage_under_an_open_artifact_is_never_read_as_data(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that was found whole is damaged afterwards: what is read is the truth, or an error."""
    make_demo(store)
    monkeypatch.setattr(artifact_module, "_checked", set())
    found = store.find(demo_key())
    assert found is not None
    array, read = found["latents"], None
    DAMAGE[name][0](a_chunk(found))
    with suppress(StoreError, ValueError):
        read = array[:]
    assert (read is None) == (name in ("deleted", "truncated", "flipped"))
    if read is not None:
        assert np.isin(read, expected()).all()


def test_a_chunk_that_vanishes_while_it_is_read_is_an_error_and_not_nan(store: Store) -> None:
    artifact = make_demo(store)
    array, dataset = artifact["latents"], artifact.dataset()
    a_chunk(artifact).unlink()
    for read in (lambda: array[:], lambda: dataset["latents"].values):
        with pytest.raises(StoreError, match="latents/c/0/0 was removed while it was in use"):
            read()


def test_damaged_records_are_named_and_dropped(store: Store) -> None:
    with_an_edit(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    path.write_text("{")
    verdict = verify(store)
    (found,) = verdict.records
    assert found.path == path and "is damaged" in found.reason
    assert [each.stage for each in found.dependents] == ["edit_keyframes", "propagate_tokens"]
    assert not verify(store, [demo_key().hex[:10]]).ok
    assert repair(store, verdict).ok
    assert not path.exists()
    told = verify(store)
    assert told.ok and len(told.orphans) == 1  # its object: told, no damage
    make_demo(store)
    assert verify(store).orphans == {}


@pytest.mark.parametrize("field", ["seconds", "note", "created"])
def test_an_edited_record_is_caught(store: Store, field: str) -> None:
    make_demo(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    raw = json.loads(path.read_text())
    raw[field] = {"seconds": 9.0, "note": {"prompt": "another"}, "created": "2001-01-01T00:00:00+00:00"}[field]
    path.write_text(json.dumps(raw, indent=1))
    assert [each.path for each in verify(store).records] == [path]
    assert store.find(demo_key()) is None


def test_a_shared_object_is_read_once_and_all_its_keys_are_named(store: Store) -> None:
    artifact, other = make_demo(store), make_demo(store, demo_key(steps=51))
    flip(a_chunk(artifact))
    read: list[int] = []
    (found,) = verify(store, begin=read.append).damaged
    assert {each.key for each in found.artifacts} == {artifact.key, other.key}
    assert read == [artifact.nbytes]
    (one,) = verify(store, [other.key]).damaged
    assert {each.key for each in one.artifacts} == {artifact.key, other.key}


def test_an_object_replaced_by_a_link_is_unlinked_and_what_it_led_to_stays(store: Store, tmp_path: Path) -> None:
    artifact = make_demo(store)
    elsewhere = artifact.path.rename(tmp_path / "elsewhere")
    artifact.path.symlink_to(elsewhere)
    verdict = verify(store)
    assert verdict.damaged[0].files == {".": "is no folder"}
    assert repair(store, verdict).ok
    assert not os.path.lexists(artifact.path)
    assert (elsewhere / "zarr.json").is_file()


def test_collected_artifacts_orphans_and_drafts_are_told_and_are_no_damage(store: Store) -> None:
    artifact = with_an_edit(store)
    store.remove_object(artifact.digest)
    (store.root / "objects" / ("ab" * 32)).mkdir()
    (store.root / "objects" / ("ab" * 32) / "file").write_bytes(b"12345")
    with stopped(), store.draft(demo_key(steps=51), demo_schema()) as draft:
        draft.write(range(2), demo_blocks(range(2)))
        raise KeyboardInterrupt
    verdict = verify(store)
    assert verdict.ok
    assert (verdict.artifacts, verdict.collected) == (2, 1)
    assert verdict.orphans == {"ab" * 32: 5}
    assert verdict.drafts == (f"demo_stage-{demo_key(steps=51).hex}",)


def test_keys_that_name_nothing_are_refused(store: Store) -> None:
    make_demo(store)
    for key in ("f" * 64, "xyz", ""):
        with pytest.raises(InputError):
            verify(store, [key])


def test_files_are_read_in_order_and_an_error_ends_it() -> None:
    assert list(in_parallel(lambda n: n * n, range(100))) == [(n, n * n) for n in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda n: 1 // (50 - n), range(100)))

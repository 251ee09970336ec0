"""A run moves with all it needs, every byte verified; a bundle that is not what it should be is refused by name."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.bundle import Bundle, write_bundle
from store.errors import InputError, StoreError
from store.keys import ArtifactKey
from store.moving import Moved, StoreSource, chosen_runs, move
from store.store import Store
from store.transfer import DamagedError
from tests.store.demo import demo_key, demo_values, make_demo
from tests.store.places import Place
from tests.store.test_store import NestedSpec

BELOW = demo_key(steps=1)
ABOVE = ArtifactKey.of("edit", 1, NestedSpec(), {"latents": BELOW.hex, "video": "blake3:" + "ab" * 32})


def with_a_run(store: Store) -> str:
    """Two artifacts, one on the other, and the run that names the upper one; another artifact beside them."""
    make_demo(store, BELOW)
    make_demo(store, demo_key(steps=99))
    with store.draft(ABOVE, _schema()) as draft:
        from store.schemas import Block

        draft.write(range(1), iter([Block("x", (0,), np.arange(4, dtype=np.float32))]))
    made = {"config": {}, "video": "clip.mp4", "outputs": [], "store": ""}
    return store.save_run({"command": "run", **made, "stages": [{"stage": "edit", "key": ABOVE.hex}]})


def _schema() -> Any:
    from store.schemas import Schema, Variable

    return Schema(artifact="edit", variables={"x": Variable(dims=("frame",), shape=(4,), dtype="float32", chunks=(4,))})


def has_all(store: Store, run: str) -> bool:
    below, above = store.find(BELOW), store.find(ABOVE)
    assert below is not None and above is not None
    np.testing.assert_array_equal(below["rgb"][:2], demo_values("rgb", range(2)))
    assert above["x"][:].tolist() == [0, 1, 2, 3]
    assert store.load_run(run)["id"] == run
    assert store.verify(below.record) == store.verify(above.record) == []
    return store.find(demo_key(steps=99)) is None


def moving(run: str | None, source: Store, target: Store) -> Moved:
    return move(chosen_runs(StoreSource(source), run), StoreSource(source), target)


# between stores


def test_a_run_goes_there_and_comes_back_with_all_it_needs(place: Place, store: Store, tmp_path: Path) -> None:
    run = with_a_run(store)
    sent = moving(run, store, place.machine("one"))
    assert (sent.artifacts, sent.already_there, sent.lost, sent.runs) == (2, 0, [], [run])
    records = [artifact.record for artifact in (store.find(BELOW), store.find(ABOVE)) if artifact]
    assert sent.bytes == sum(record.bytes for record in records)
    assert sent.files == sum(len(record.files) for record in records)
    assert has_all(place.machine("two"), run)
    colleague = Store(tmp_path / "colleague")
    came = moving("latest", place.machine("three"), colleague)
    assert came.bytes == sent.bytes
    assert has_all(colleague, run)
    assert (
        store.layout.record("edit", ABOVE.hex).read_bytes() == colleague.layout.record("edit", ABOVE.hex).read_bytes()
    )
    again = moving(run, place.machine("two"), colleague)
    assert (again.artifacts, again.bytes, again.already_there) == (0, 0, 2)


def test_what_is_damaged_here_is_not_sent(memory: Place, store: Store) -> None:
    run = with_a_run(store)
    artifact = store.find(BELOW)
    assert artifact is not None
    chunk = artifact.path / "rgb" / "c" / "1" / "0" / "0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with pytest.raises(DamagedError, match=f"file rgb/c/1/0/0 is lost or damaged in {store.place}"):
        moving(run, store, memory.machine())
    assert memory.machine("two").find(BELOW) is None
    assert memory.machine("two").runs() == []


def test_what_is_damaged_there_is_not_taken(memory: Place, store: Store, tmp_path: Path) -> None:
    run = with_a_run(store)
    moving(run, store, memory.machine())
    artifact = store.find(BELOW)
    assert artifact is not None
    name = f"objects/{artifact.digest}/rgb/c/1/0/0"
    memory.backend().put(name, bytes(memory.backend().list("objects")[name]))
    colleague = Store(tmp_path / "colleague")
    with pytest.raises(DamagedError, match=f"file rgb/c/1/0/0 is lost or damaged in {memory.url}"):
        moving(run, memory.machine("two"), colleague)
    assert colleague.find(BELOW) is None and colleague.runs() == []


def test_a_move_that_was_stopped_goes_on(store: Store, tmp_path: Path) -> None:
    run = with_a_run(store)
    colleague = Store(tmp_path / "colleague")
    source = StoreSource(store)
    left = 5

    def some(record: Any, name: str, spare: Path) -> Path | None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return store.file_of(record, name, spare)

    source.file_of = some  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        move(chosen_runs(source, run), source, colleague)
    assert colleague.find(BELOW) is None and colleague.find(ABOVE) is None and colleague.runs() == []
    first = store.find(BELOW)
    assert first is not None
    done = moving(run, store, colleague)
    assert done.bytes < first.nbytes + store.find(ABOVE).nbytes  # type: ignore[union-attr]
    assert has_all(colleague, run)


def test_what_was_collected_is_told_and_can_be_made_again(store: Store, tmp_path: Path) -> None:
    import shutil

    run = with_a_run(store)
    shutil.rmtree(store.find(BELOW).path)  # type: ignore[union-attr]
    moved = moving(run, store, Store(tmp_path / "colleague"))
    assert moved.lost == [BELOW.hex]
    assert moved.artifacts == 1
    assert "can be made again: 1" in str(moved)


def test_runs_are_chosen_by_id_or_latest(store: Store) -> None:
    with pytest.raises(InputError, match="there is no run in"):
        chosen_runs(StoreSource(store), "latest")
    first, second = store.save_run({}), store.save_run({})
    newest, oldest = sorted([first, second], reverse=True)
    assert [run["id"] for run in chosen_runs(StoreSource(store), "latest")] == [newest]
    assert [run["id"] for run in chosen_runs(StoreSource(store), oldest)] == [oldest]
    assert [run["id"] for run in chosen_runs(StoreSource(store), None)] == [newest, oldest]
    for unknown in ("20000101-000000-abcdef", "../format", ""):
        with pytest.raises(InputError, match="no run"):
            chosen_runs(StoreSource(store), unknown)


def test_a_run_of_strange_shape_moves_nothing(store: Store, tmp_path: Path) -> None:
    target = Store(tmp_path / "colleague")
    for stages in (None, {}, [None], [{}], [{"stage": "edit", "key": ["x"]}], [{"stage": "edit", "key": "../x"}]):
        store.save_run({"stages": stages})
    with pytest.raises(InputError, match="there is no run"):
        moving(None, store, target)
    store.save_run({"stages": [{"stage": "edit", "key": "0" * 64}]})
    moved = moving(None, store, target)
    assert (len(moved.runs), moved.artifacts) == (1, 0)


# bundles


@pytest.fixture
def bundled(store: Store, tmp_path: Path) -> tuple[Path, str]:
    run = with_a_run(store)
    file = tmp_path / "run.zip"
    write_bundle(chosen_runs(StoreSource(store), run), StoreSource(store), file)
    return file, run


def test_a_bundle_takes_a_run_to_a_colleague(bundled: tuple[Path, str], place: Place, tmp_path: Path) -> None:
    file, run = bundled
    for target in (Store(tmp_path / "colleague"), place.machine("one")):
        with Bundle(file, target.layout.drafts) as bundle:
            moved = move(chosen_runs(bundle, None), bundle, target)
        assert (moved.artifacts, moved.runs) == (2, [run])
        assert has_all(target, run)
    assert has_all(place.machine("two"), run)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".part", ".file")] == []


def test_a_bundle_of_a_shared_store_is_the_same(bundled: tuple[Path, str], memory: Place, store: Store) -> None:
    file, run = bundled
    moving(run, store, memory.machine("one"))
    source = StoreSource(memory.machine("two"))
    again = file.with_name("again.zip")
    write_bundle(chosen_runs(source, run), source, again)
    with zipfile.ZipFile(file) as one, zipfile.ZipFile(again) as two:
        assert {name: one.read(name) for name in one.namelist()} == {name: two.read(name) for name in two.namelist()}


def test_a_bundle_is_whole_or_absent(bundled: tuple[Path, str], store: Store, tmp_path: Path) -> None:
    artifact = store.find(BELOW)
    assert artifact is not None
    chunk = artifact.path / "rgb" / "c" / "1" / "0" / "0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    before = sorted(tmp_path.iterdir())
    for name in ("other.zip", "run.zip"):
        with pytest.raises(StoreError):
            write_bundle(chosen_runs(StoreSource(store), "latest"), StoreSource(store), tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    with Bundle(tmp_path / "run.zip", tmp_path / "scratch") as bundle:
        assert len(bundle.runs()) == 1
    for file in ("run.tar", "nowhere/run.zip"):
        with pytest.raises(InputError):
            write_bundle([], StoreSource(store), tmp_path / file)


def rewritten(file: Path, change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]) -> Path:
    """A bundle with its entries changed."""
    with zipfile.ZipFile(file) as old:
        entries = [(entry, old.read(entry)) for entry in old.infolist()]
    change(entries)
    target = file.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as new:
        for entry, content in entries:
            new.writestr(entry, content)
    return target


def _named(name: str, kind: int = stat.S_IFREG, packed: bool = False) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    return entry


def _object(entries: list[tuple[zipfile.ZipInfo, bytes]], ends: str = "rgb/c/1/0/0") -> int:
    return next(i for i, (entry, _) in enumerate(entries) if entry.filename.endswith(ends))


def _altered(field: str, value: Any) -> Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]:
    def change(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
        at = _object(entries, f"{BELOW.hex}.json")
        raw = json.loads(entries[at][1])
        raw[field] = value(raw[field])
        entries[at] = (entries[at][0], json.dumps(raw).encode())

    return change


def _outside(files: dict[str, Any]) -> dict[str, Any]:
    return {("../../x" if name.startswith("rgb/c/1") else name): entry for name, entry in files.items()}


HOSTILE: dict[str, tuple[Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None], str]] = {
    "outside": (lambda entries: entries.append((_named("../../evil"), b"x")), "'../../evil' is no name"),
    "inside outside": (
        lambda entries: entries.append((_named(f"objects/{'a' * 64}/../../evil"), b"x")), "is no name of a bundle"
    ),
    "absolute": (lambda entries: entries.append((_named("/etc/cron.d/evil"), b"x")), "'/etc/cron.d/evil' is no name"),
    "backslash": (lambda entries: entries.append((_named(f"objects/{'a' * 64}/..\\evil"), b"x")), "is no name"),
    "another thing": (lambda entries: entries.append((_named("evil.py"), b"x")), "'evil.py' is no name"),
    "a link": (
        lambda entries: entries.append((_named(f"objects/{'a' * 64}/x", stat.S_IFLNK), b"/etc/passwd")), "is a link"
    ),
    "twice": (lambda entries: entries.append(entries[_object(entries)]), "is there twice"),
    "unlisted": (lambda entries: entries.append((_named(f"objects/{'a' * 64}/x"), b"x")), "is listed in no record"),
    "packed": (
        lambda entries: entries.append((_named(f"objects/{'a' * 64}/bomb", packed=True), bytes(10**7))), "is packed"
    ),
    "another size": (
        lambda entries: entries.__setitem__(_object(entries), (entries[_object(entries)][0], b"x")), "has 1 bytes, but"
    ),
    "a record with another list": (_altered("files", lambda files: dict(list(files.items())[1:])), "digest"),
    "a record that points outside": (_altered("files", _outside), "outside its object"),
    "a record of another stage": (_altered("stage", lambda stage: "../../x"), "stage: String should match"),
    "deep": (
        lambda entries: entries.append((_named("runs/20260101-000000-000000.json"), b"[" * 10**5)), "is damaged"
    ),
    "another run": (
        lambda entries: entries.append((_named("runs/20260101-000000-000000.json"), b'{"id": "../x"}')), "another id"
    ),
    "no format": (lambda entries: entries.pop(0), "is no bundle of this version"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_bundle_is_refused_by_name(bundled: tuple[Path, str], how: str, tmp_path: Path) -> None:
    change, says = HOSTILE[how]
    file = rewritten(bundled[0], change)
    target = Store(tmp_path / "colleague")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with (
        pytest.raises(InputError, match=r"is refused|is no bundle") as refused,
        Bundle(file, target.layout.drafts) as b,
    ):
        move(chosen_runs(b, None), b, target)
    assert says in str(refused.value)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_bundle_whose_bytes_rotted_gives_nothing(bundled: tuple[Path, str], tmp_path: Path) -> None:
    file, _ = bundled
    with zipfile.ZipFile(file) as bundle:
        entry = next(entry for entry in bundle.infolist() if entry.filename.endswith("rgb/c/1/0/0"))
        content = bundle.read(entry)
    data = bytearray(file.read_bytes())
    at = data.find(content, entry.header_offset)
    data[at] ^= 1
    file.write_bytes(data)
    target = Store(tmp_path / "colleague")
    with (
        pytest.raises(DamagedError, match=r"file rgb/c/1/0/0 is lost or damaged in .*run\.zip"),
        Bundle(file, target.layout.drafts) as source,
    ):
        move(chosen_runs(source, None), source, target)
    assert target.find(BELOW) is None and target.runs() == []


def test_entries_that_share_bytes_are_refused(bundled: tuple[Path, str], tmp_path: Path) -> None:
    """The bomb without compression: many entries of the directory point at the same bytes."""
    file, _ = bundled
    with zipfile.ZipFile(file, "a") as bundle:
        big = _named("keys/demo_stage/" + "a" * 64 + ".json")
        bundle.writestr(big, bytes(10**6))
        for number in range(100):
            twin = _named(f"keys/demo_stage/{number:064x}.json")
            twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = (
                big.header_offset, big.file_size, big.compress_size, big.CRC,
            )  # fmt: skip
            bundle.filelist.append(twin)
            bundle.NameToInfo[twin.filename] = twin
    with pytest.raises(InputError, match="overlap"):
        Bundle(file, tmp_path / "scratch")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    with pytest.raises(InputError, match="no bundle"):
        Bundle(tmp_path / "file.zip", tmp_path / "scratch")
    with pytest.raises(InputError, match="cannot read"):
        Bundle(tmp_path / "none.zip", tmp_path / "scratch")

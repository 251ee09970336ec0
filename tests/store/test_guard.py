"""Nobody gets in: what others wrote is refused by name, costs little, and is at worst computed again."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store import artifact as artifact_module
from store.artifact import Artifact
from store.draft import Draft
from store.errors import StoreError
from store.guard import Refused, check_name, check_names, read_json, read_small
from store.records import parse_record, read_record
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo, stopped
from tests.store.hostile import changed, forge_metadata, forged, put_record, resealed

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"

needs_links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_module, "_checked", set())


@pytest.fixture
def record(store: Store) -> dict[str, Any]:
    """The record of the demo, as its file says it."""
    artifact = make_demo(store)
    return json.loads(store.layout.record(artifact.stage, artifact.key).read_text())


def is_one_sentence(error: BaseException) -> bool:
    return str(error).isprintable() and len(str(error)) < 1000


# names


@pytest.mark.parametrize(
    "name", ["zarr.json", "tokens.up_blocks.1/c/0/12/3", "objects/" + "ab" * 32 + "/zarr.json", "a-b_c=d+e"]
)
def test_names_as_we_write_them_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "x/..",
            "x/../y",
            "./x",
            "x/.",
            "x//y",
            "x/",
            ".hidden",
            "x/.git/config",
        ),
        *(
            "a\\b",
            "\\\\server\\share",
            "C:\\x",
            "C:x",
            "c:/x",
            "x:stream",
            "a\0b",
            "a\nb",
            "a\x1b[2Jb",
            "a b",
            "~/x",
            "$HOME",
        ),
        *(
            "nul",
            "NUL.txt",
            "x/com1",
            "aux",
            "x.",
            "x ",
            "ä",
            "a\u202eb",
            "a\ud800",
            "-rf",
            "x" * 201,
            "/".join("x" * 40),
        ),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(Refused) as said:
        check_name(name)
    assert is_one_sentence(said.value)


@pytest.mark.parametrize("names", [["a/B", "a/b"], ["a", "a/b"], ["A", "a/b/c"], ["zarr.json", "zarr.json/x"]])
def test_names_that_meet_on_some_system_are_refused(names: list[str]) -> None:
    with pytest.raises(Refused):
        check_names(names)
    with pytest.raises(Refused):
        check_names(reversed(names))


# small files


@needs_links
def test_only_regular_small_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"1234")
    assert read_small(tmp_path / "small", 4) == b"1234"
    (tmp_path / "link").symlink_to(tmp_path / "small")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("link", "dangling", "pipe", "folder", "sparse", "socket"):
            with pytest.raises(Refused):
                read_small(tmp_path / name)
            with pytest.raises(StoreError, match=f"the note .*{name} is damaged .*; delete that file"):
                read_json(tmp_path / name, "the note")
    with pytest.raises(Refused):
        read_small(Path("/dev/zero"))


BOMBS = {
    "lists": b'{"a":[' + b"[]," * (20 << 20),
    "objects": b'{"a":[' + b"{}," * (20 << 20),
    "numbers": b'{"a":[' + b"1," * (30 << 20),
    "strings": b'{"a":[' + b'"",' * (20 << 20),
    "deep": b"[" * (60 << 20),
    "files": b'{"format":2,"files":{' + b",".join(b'"a/%d":{}' % n for n in range(4_000_000)) + b"}}",
    "errors": b'{"format":2,"files":{' + b",".join(b'"a/%d":0' % n for n in range(1_000_000)) + b"}}",
    "labels": b'{"format":2,"files":{},"schema":{"coordinates":{"a":[' + b'"x",' * 3_000_000 + b'"x"]}}}',
    "long string": b'{"a":"' + b"x" * (60 << 20) + b'"}',
    "beyond": b'{"a":1}' + b" " * (64 << 20),
}
BOMB = """
import resource, sys
from pathlib import Path
from store.errors import StoreError
from store.records import read_record
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_record(Path(sys.argv[1]))
except StoreError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, str(error)[:300])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_large_record_of_little_sense_costs_little(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{'ab' * 32}.json"
    path.write_bytes(BOMBS[name])
    command = [sys.executable, "-c", BOMB, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    kilobytes, _, said = done.stdout.partition(" ")
    assert "is damaged" in said
    assert int(kilobytes) < 700_000


# records


def cases(kind: str) -> list[Any]:
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in sorted(CORPUS.glob(f"{kind}-*.json"))]


@pytest.mark.parametrize("case", cases("record"))
def test_a_hostile_record_is_refused_by_name_and_made_again(
    store: Store, record: dict[str, Any], case: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    finish = {"forged": forged, "resealed": resealed, "edited": lambda record: record}[case["how"]]
    bad = finish(changed(record, case["changes"]))
    path = store.layout.record("demo_stage", demo_key().hex)
    path.write_text(json.dumps(bad))
    with pytest.raises(StoreError, match=case["said"]) as said:
        read_record(path)
    assert str(path) in str(said.value)
    assert is_one_sentence(said.value)
    with caplog.at_level(logging.WARNING):
        assert store.find(demo_key()) is None
        assert list(store.records()) == []
    assert str(path) in caplog.text
    assert "damaged" in str(store.explain(demo_key()))
    assert store.explain(demo_key(steps=51)) is not None
    make_demo(store)
    assert store.find(demo_key()) is not None


@pytest.mark.parametrize("case", cases("text"))
def test_hostile_text_is_no_record_no_run_and_no_note(store: Store, case: dict[str, Any]) -> None:
    path = store.layout.record("demo_stage", demo_key().hex)
    path.parent.mkdir(parents=True)
    path.write_text(case["text"])
    run = store.layout.runs / "20260101-000000-abcdef.json"
    run.parent.mkdir()
    run.write_text(case["text"])
    for read in (lambda: read_record(path), lambda: parse_record(path.read_bytes(), "the bucket")):
        with pytest.raises(StoreError, match=case["said"]) as said:
            read()
        assert is_one_sentence(said.value)
    assert store.find(demo_key()) is None
    assert store.runs() == []


def test_a_record_forged_with_every_hash_is_taken_for_what_it_is(store: Store, record: dict[str, Any]) -> None:
    """A seal is no signature: the test of the tests above, which must fail for their own reason and not for a hash."""
    put_record(store, forged(changed(record, [(["note"], {"prompt": "another"}), (["seconds"], 7.5)])))
    found = store.find(demo_key())
    assert found is not None
    assert found.record.note == {"prompt": "another"}


def test_every_field_of_a_record_is_sealed(store: Store, record: dict[str, Any]) -> None:
    path = store.layout.record("demo_stage", demo_key().hex)
    for field, value in record.items():
        other = {str: "0" * 64, int: 1, float: 1.25, dict: {}, list: [], type(None): "x"}[type(value)]
        path.write_text(json.dumps(record | {field: other}))
        with pytest.raises(StoreError, match="is damaged"):
            read_record(path)


@needs_links
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_record_that_is_no_file_is_a_miss(
    store: Store, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_demo(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    moved = path.rename(tmp_path / "record.json")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert store.find(demo_key()) is None
    assert list(store.records()) == []
    assert str(path) in caplog.text


# objects


@needs_links
@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "socket", "folder", "device"])
def test_what_is_no_regular_file_in_an_object_is_damage(store: Store, tmp_path: Path, kind: str) -> None:
    artifact = make_demo(store)
    chunk = artifact.path / "rgb" / "c" / "0" / "0" / "0"
    moved = chunk.rename(tmp_path / "chunk")
    if kind.startswith("link"):
        chunk.symlink_to(moved if kind == "link" else tmp_path)
    elif kind == "pipe":
        os.mkfifo(chunk)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(tmp_path / "s"))
        (tmp_path / "s").rename(chunk)
    elif kind == "device":
        chunk.symlink_to("/dev/zero")
    else:
        chunk.mkdir()
    assert store.find(demo_key()) is None
    assert "rgb/c/0/0/0" in str(store.explain(demo_key()))
    assert store.verify(artifact.record) == ["rgb/c/0/0/0"]
    assert make_demo(store).digest == artifact.digest
    assert moved.exists(), "what a link led to is left alone"
    assert store.verify(artifact.record) == []


@needs_links
def test_an_object_that_is_a_link_is_damage_and_is_replaced(store: Store, tmp_path: Path) -> None:
    artifact = make_demo(store)
    moved = artifact.path.rename(tmp_path / "elsewhere")
    artifact.path.symlink_to(moved)
    assert store.find(demo_key()) is None
    assert store.verify(artifact.record) == list(artifact.record.files)
    before = set(moved.rglob("*"))
    assert make_demo(store).digest == artifact.digest
    assert not artifact.path.is_symlink()
    assert set(moved.rglob("*")) == before


def test_a_hard_link_is_read_since_backups_are_made_of_them_and_verify_sees_a_change_through_it(
    store: Store, tmp_path: Path
) -> None:
    artifact = make_demo(store)
    chunk = artifact.path / "rgb" / "c" / "0" / "0" / "0"
    os.link(chunk, tmp_path / "other")
    assert store.find(demo_key()) is not None
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    (tmp_path / "other").write_bytes(data)
    assert store.verify(artifact.record) == ["rgb/c/0/0/0"]


# the metadata inside an object


def codec(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda own: own | {"codecs": list(steps)}


BYTES, CRC = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
SHARDS = {"chunk_shape": [2, 2], "codecs": [BYTES], "index_codecs": [BYTES, CRC], "index_location": "end"}
METADATA: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "pickle codec": ("latents", codec({"name": "numcodecs.pickle", "configuration": {}}), "other than bytes, crc32c"),
    "pickle after bytes": ("latents", codec(BYTES, {"name": "numcodecs.pickle"}), "other than bytes, crc32c"),
    "no checksum": ("latents", codec(BYTES), "other than bytes, crc32c"),
    "another compressor": ("index", codec(BYTES, {"name": "gzip"}, CRC), "other than bytes, blosc, crc32c"),
    "shards": ("latents", codec({"name": "sharding_indexed", "configuration": SHARDS}), "other than bytes, crc32c"),
    "codec of its own": ("latents", codec(BYTES | {"must_understand": False}, CRC), "other than bytes, crc32c"),
    "codec setting": ("latents", codec(BYTES, CRC | {"configuration": {"location": "start"}}), "unknown setting"),
    "big endian": ("latents", codec({"name": "bytes", "configuration": {"endian": "big"}}, CRC), "order of bytes"),
    "codecs as text": ("latents", lambda own: own | {"codecs": "bytes"}, "other than bytes, crc32c"),
    "giant shape": ("latents", lambda own: own | {"shape": [10**18, 10**18]}, "expected size frame=6, channel4=4"),
    "other chunks": (
        "latents",
        lambda own: own | {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [6, 4]}}},
        "is not what is written for its schema",
    ),
    "object dtype": ("latents", lambda own: own | {"data_type": "object"}, "expected dtype float16, got 'object'"),
    "structured dtype": (
        "latents",
        lambda own: own | {"data_type": {"name": "structured", "configuration": {"fields": [["a", "int8"]]}}},
        "expected dtype float16",
    ),
    "storage transformer": (
        "latents", lambda own: own | {"storage_transformers": [{"name": "elsewhere"}]}, "is not what is written",
    ),
    "other keys": (
        "latents",
        lambda own: own | {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/"}}},
        "is not what is written",
    ),
    "fill value": ("latents", lambda own: own | {"fill_value": 0.0}, "is not what is written"),
    "scaled by xarray": ("latents", lambda own: own | {"attributes": {"scale_factor": 2.0}}, "is not what is written"),
    "another dimension": ("latents", lambda own: own | {"dimension_names": ["frame", "x"]}, "expected dims"),
    "format 2": ("latents", lambda own: own | {"zarr_format": 2}, "is not what is written"),
    "reference elsewhere": ("latents", lambda own: own | {"reference": "http://127.0.0.1/"}, "is not what is written"),
    "group attribute": ("", lambda root: root | {"attributes": {"coordinates": "rgb"}}, "its zarr.json is not what"),
    "no consolidated metadata": (
        "", lambda root: {n: v for n, v in root.items() if n != "consolidated_metadata"}, "its zarr.json is not what",
    ),
    "group of groups": ("", lambda root: root | {"node_type": "array"}, "its zarr.json is not what"),
}  # fmt: skip


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_is_not_ours_is_refused_before_zarr_reads_it(store: Store, case: str) -> None:
    name, change, said = METADATA[case]
    forgery = forge_metadata(store, make_demo(store), name, change)
    for read in (lambda: forgery["rgb"], forgery.dataset):
        with pytest.raises(StoreError, match=said) as error:
            read()
        assert "demo_stage/" in str(error.value) and is_one_sentence(error.value)


def test_metadata_that_is_ours_is_read_whatever_its_spaces(store: Store) -> None:
    forgery = forge_metadata(store, make_demo(store), "latents", lambda own: dict(reversed(own.items())))
    assert forgery["latents"].shape == (6, 4)


def test_the_two_metadata_of_an_array_must_agree(store: Store) -> None:
    artifact = make_demo(store)
    own = artifact.path / "latents" / "zarr.json"
    own.write_text(own.read_text().replace('"NaN"', "  0  "))
    with pytest.raises(StoreError, match="the two metadata of latents differ"):
        artifact["latents"]


# drafts


def stopped_draft(store: Store) -> Path:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for part in demo_schema().divided():
            draft.write(part, demo_blocks(part))
        raise KeyboardInterrupt
    return store.layout.draft("demo_stage", demo_key().hex)


def resumed(store: Store) -> tuple[list[range], Artifact]:
    with store.draft(demo_key(), demo_schema()) as draft:
        missing = draft.missing()
        for part in missing:
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
    return missing, draft.artifact


@pytest.mark.parametrize("case", [*cases("marker"), *cases("text")])
def test_a_hostile_marker_is_named_and_its_part_done_again(
    store: Store, case: dict[str, Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    whole = make_demo(Store(tmp_path / "whole"))
    marker = stopped_draft(store) / "parts" / "1.json"
    genuine = json.loads(marker.read_text())
    marker.write_text(case["text"] if "text" in case else json.dumps(changed(genuine, case["changes"])))
    missing, artifact = resumed(store)
    assert missing == [range(2, 4)]
    assert "part 1 of the draft of demo demo_stage/" in caplog.text
    assert artifact.digest == whole.digest


@needs_links
@pytest.mark.parametrize("place", ["", "group", "parts", "group/latents", "group/latents/c"])
def test_nothing_is_written_or_removed_through_a_link_in_a_draft(store: Store, tmp_path: Path, place: str) -> None:
    folder = stopped_draft(store)
    moved = (folder / place).rename(tmp_path / "elsewhere")
    (folder / place).symlink_to(moved)
    (moved / "c").mkdir(exist_ok=True)
    (moved / "c" / "precious").write_text("not ours")
    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    _, artifact = resumed(store)
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    assert store.verify(artifact.record) == []


@needs_links
@pytest.mark.parametrize("name", ["parts/1.json", "schema.json", "group/latents/c/1/0", "group/latents/zarr.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_a_draft_is_removed(store: Store, tmp_path: Path, name: str, kind: str) -> None:
    folder = stopped_draft(store)
    moved = (folder / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / name).symlink_to(moved)
    else:
        os.mkfifo(folder / name)
    data = moved.read_bytes()
    _, artifact = resumed(store)
    assert moved.read_bytes() == data
    assert store.verify(artifact.record) == []
    assert store.find(demo_key()) is not None


def test_a_pending_record_of_another_key_is_not_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(draft: Draft, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, stopped():
        patch.setattr(Draft, "_publish", stop)
        make_demo(store)
    pending = store.layout.draft("demo_stage", demo_key().hex) / "record.json"
    record = json.loads(pending.read_text())
    pending.write_text(json.dumps(forged(changed(record, [(["recipe", "stage"], "other"), (["stage"], "other")]))))
    missing, _ = resumed(store)
    assert missing == demo_schema().divided()
    assert not store.layout.records("other").exists()


# runs


@pytest.mark.parametrize("case", cases("run"))
def test_a_hostile_run_is_named_and_passed_over(
    store: Store, case: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    kept = store.save_run({"command": "run", "config": {}, "stages": [{"stage": "edit", "key": "ab" * 32}],
                           "video": "", "outputs": [{"file": "a.mp4"}], "store": ""})  # fmt: skip
    path = store.layout.runs / "20990101-000000-abcdef.json"
    genuine = store.load_run(kept) | {"id": path.stem}
    path.write_text(json.dumps(genuine))
    assert len(store.runs()) == 2
    path.write_text(json.dumps(changed(genuine, case["changes"])))
    assert [run["id"] for run in store.runs()] == [kept]
    assert str(path) in caplog.text
    with pytest.raises(StoreError, match=case["said"]):
        store.load_run(path.stem)


# notes


@needs_links
@pytest.mark.parametrize("kind", ["pipe", "link", "deep", "list", "giant"])
def test_a_hostile_note_is_one_that_was_never_made(store: Store, tmp_path: Path, kind: str) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"1234")
    os.utime(video, (0, 0))
    digest = store.file_hash(video)
    store.remember("what", 1)
    of_video = hashlib.sha256(str(video.resolve()).encode()).hexdigest()
    for note in (store._note("what"), store.layout.hashes / f"{of_video}.json"):
        note.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(note)
        elif kind == "link":
            note.symlink_to("/dev/zero")
        else:
            note.write_bytes({"deep": b"[" * 5000, "list": b"[1]", "giant": b" " * (65 << 20)}[kind])
    assert store.recall("what") is None
    assert store.file_hash(video) == digest


# what is written


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_has_the_users_umask(tmp_path: Path, umask: int, mode: int) -> None:
    code = (
        "import os, sys; from pathlib import Path; from store.store import Store; from tests.store.demo import *\n"
        "os.umask(int(sys.argv[2])); s = Store(sys.argv[1]); make_demo(s); s.save_run({}); s.remember('a', 1)\n"
        "s.file_hash(__file__ if '__file__' in globals() else sys.executable)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store"), str(umask)]
    subprocess.run(command, cwd=ROOT, check=True)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.relative_to(tmp_path / "store").parts[0] for path in files} >= {"objects", "keys", "runs", "format"}
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
    folders = [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o777 & ~umask}


@needs_links
def test_a_link_at_the_destination_is_replaced_and_not_followed(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("not ours")
    path = store.layout.record("demo_stage", demo_key().hex)
    path.parent.mkdir(parents=True)
    path.symlink_to(precious)
    make_demo(store)
    assert precious.read_text() == "not ours"
    assert not path.is_symlink()


def test_no_shell_is_ever_called_and_nothing_is_ever_unpickled() -> None:
    rooms = [
        ROOT / "cli.py",
        *(file for room in ("flows", "stages", "store", "pocket") for file in (ROOT / room).rglob("*.py")),
    ]
    forbidden = (
        "shell=True",
        "os.system",
        "os.popen",
        "getstatusoutput",
        "import pickle",
        "pickle.load",
        "eval(",
        "exec(",
    )
    for file in rooms:
        text = file.read_text()
        found = [word for word in forbidden if word in text.replace(".eval(", "").replace("literal_eval(", "")]
        assert not found, f"{file}: {found}"
    for file in (ROOT / "store").rglob("*.py"):
        assert "allow_pickle" not in file.read_text().replace("allow_pickle=False", "")

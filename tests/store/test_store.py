"""What is committed is found, whole, and read by anyone; what is damaged is a miss that says why."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray

from store import artifact as artifact_module
from store.artifact import Artifact
from store.errors import InputError, SchemaError, StoreError, StorePlaceError
from store.keys import ArtifactKey, UnnameableError
from store.records import read_record
from store.schemas import Block, Frozen, Schema, Variable
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, demo_values, make_demo, stopped

ROOT = Path(__file__).parents[2]


def a_chunk(artifact: Artifact, name: str = "latents") -> Path:
    return artifact.path / name / "c" / "0" / "0"


# what was committed


def test_every_dtype_comes_back_through_plain_xarray_without_a_warning(store: Store) -> None:
    artifact = make_demo(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(artifact.path).load()
    assert list(dataset.coords["frame"].values) == [10, 11, 12, 13, 14, 15]
    assert dataset.attrs == {"artifact": "demo", "scale": 0.18215, "fps": 24.0}
    for name, variable in demo_schema().variables.items():
        expected = np.concatenate([demo_values(name, part) for part in demo_schema().divided()])
        assert dataset[name].dtype == np.dtype(variable.dtype)
        assert dataset[name].dims == variable.dims
        np.testing.assert_array_equal(dataset[name].values, expected)
        np.testing.assert_array_equal(artifact[name][:], expected)


def test_an_artifact_reads_like_a_mapping_of_arrays(store: Store) -> None:
    artifact = make_demo(store)
    found = store.find(demo_key())
    assert found == artifact
    assert found is not None
    assert (found.key, found.stage, found.attrs) == (demo_key().hex, "demo_stage", {"scale": 0.18215, "fps": 24.0})
    assert list(found) == list(demo_schema().variables)
    assert (found["rgb"].shape, found["rgb"].dtype) == ((6, 4, 3), np.uint8)
    assert isinstance(found["latents"][2:4], np.ndarray)
    assert found.dataset()["latents"].dims == ("frame", "channel4")
    assert found.nbytes == sum(path.stat().st_size for path in found.path.rglob("*") if path.is_file())
    with pytest.raises(KeyError, match="no variable 'depth'; it has rgb, index"):
        found["depth"]
    with pytest.raises(TypeError, match="assignment"):
        found["rgb"][0] = 0
    assert store.find(demo_key().hex) == artifact
    assert store.find(demo_key(steps=51)) is None
    assert store.find("0" * 64) is None


def test_a_growing_dimension_takes_its_size_from_what_came(store: Store) -> None:
    schema = Schema(
        artifact="clip",
        variables={
            "rgb": Variable(dims=("frame", "channel"), shape=(None, 3), dtype="uint8", chunks=(4, 3)),
            "pts": Variable(dims=("frame",), shape=(None,), dtype="float64", chunks=(16,), units="s", finite=True),
        },
    )
    rgb = np.arange(21, dtype=np.uint8).reshape(7, 3)
    with store.draft(demo_key(), schema) as draft:
        blocks = [
            block
            for start in (0, 3, 6)
            for block in (
                Block("rgb", (start, 0), rgb[start : start + 3]),
                Block("pts", (start,), np.arange(start, min(start + 3, 7)) / 4),
            )
        ]
        with pytest.raises(InterruptedError):
            draft.write(range(1), interrupted(blocks, 5))
        draft.write(range(1), iter(blocks))
    artifact = draft.artifact
    assert artifact.schema.variables["rgb"].shape == (7, 3)
    np.testing.assert_array_equal(artifact["rgb"][:], rgb)
    np.testing.assert_array_equal(artifact.dataset()["pts"], np.arange(7) / 4)


def interrupted(blocks, after: int):
    yield from blocks[:after]
    raise InterruptedError


def test_growing_variables_must_agree_on_their_length(store: Store) -> None:
    grows = Variable(dims=("frame",), shape=(None,), dtype="int32", chunks=(4,))
    schema = Schema(artifact="clip", variables={"a": grows, "b": grows})
    with pytest.raises(SchemaError, match="b has 2 along frame, but a has 3"), store.draft(demo_key(), schema) as draft:
        draft.write(range(1), iter([Block(n, (0,), np.zeros(k, np.int32)) for n, k in (("a", 3), ("b", 2))]))
    assert not store.layout.draft("demo_stage", demo_key().hex).exists()


def test_a_later_part_reads_the_earlier_ones(store: Store) -> None:
    schema = Schema(
        artifact="walk",
        variables={"x": Variable(dims=("step",), shape=(4,), dtype="float32", chunks=(1,))},
        parts=("step", 1),
    )
    with store.draft(demo_key(), schema) as draft:
        for part in draft.missing():
            before = draft.read("x")[part.start - 1] if part.start else np.float32(1)
            draft.write(part, iter([Block("x", (part.start,), np.array([before * 2], np.float32))]))
    assert draft.artifact["x"][:].tolist() == [2, 4, 8, 16]
    with store.draft(demo_key(), schema) as again:
        assert again.missing() == []
        assert again.read("x")[3] == 16
    assert again.found == again.artifact == draft.artifact


def test_parts_may_be_written_by_threads(store: Store) -> None:
    with store.draft(demo_key(), demo_schema()) as draft:
        threads = [threading.Thread(target=draft.write, args=(p, demo_blocks(p))) for p in draft.missing()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        draft.attrs["fps"] = 24.0
    assert draft.artifact.digest == make_demo(store, demo_key(steps=51)).digest


def test_equal_bytes_under_two_keys_are_one_object(store: Store) -> None:
    one, other = make_demo(store), make_demo(store, demo_key(steps=51))
    assert one.path == other.path
    assert one.key != other.key
    assert len(list((store.root / "objects").iterdir())) == 1


def test_the_record_tells_recipe_files_seconds_and_provenance(store: Store) -> None:
    with store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
            time.sleep(0.01)
        draft.provenance.update(device="cpu")
        draft.note = {"prompt": "a red ball"}
    record = draft.artifact.record
    raw = json.loads(store.layout.record("demo_stage", demo_key().hex).read_text())
    assert raw["schema"]["artifact"] == "demo"
    assert ArtifactKey.model_validate(raw["recipe"]).hex == demo_key().hex == record.hex
    assert set(record.files) == {
        path.relative_to(draft.artifact.path).as_posix() for path in draft.artifact.path.rglob("*") if path.is_file()
    }
    assert record.provenance["device"] == "cpu"
    assert record.provenance["zarr"]
    assert record.note == {"prompt": "a red ball"}
    assert 0 < record.seconds == round(draft.seconds, 3)


def test_attributes_that_are_not_json_are_refused(store: Store) -> None:
    schema = demo_schema().model_copy(update={"attrs": {"fps": float("nan")}})
    with pytest.raises(UnnameableError, match="fps is nan"):
        make_demo(store, schema=schema)
    assert store.find(demo_key()) is None


# damage


def test_a_missing_chunk_is_a_miss_and_is_made_again(store: Store) -> None:
    artifact = make_demo(store)
    a_chunk(artifact).unlink()
    assert store.find(demo_key()) is None
    assert str(store.explain(demo_key())) == "damaged: file latents/c/0/0 is missing"
    assert make_demo(store).digest == artifact.digest
    assert store.find(demo_key()) is not None
    assert store.explain(demo_key()) is None


def test_a_truncated_file_is_a_miss(store: Store) -> None:
    artifact = make_demo(store)
    size = a_chunk(artifact).stat().st_size
    os.truncate(a_chunk(artifact), size - 1)
    assert store.find(demo_key()) is None
    assert str(store.explain(demo_key())) == f"damaged: file latents/c/0/0 has {size - 1} bytes instead of {size}"


@pytest.mark.parametrize("name", ["latents", "index"])
def test_a_flipped_byte_is_named_by_verify_and_never_read_as_data(store: Store, name: str) -> None:
    artifact = make_demo(store)
    assert store.verify(artifact.record) == []
    chunk = a_chunk(artifact, name)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert store.verify(artifact.record) == [f"{name}/c/0/0"]
    with pytest.raises(SchemaError, match=f"demo demo_stage/.*{name}: Stored and computed checksum do not match"):
        store.find(demo_key())[name][:]  # type: ignore[index]


def test_unreadable_metadata_is_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_demo(store)
    monkeypatch.setattr(artifact_module, "_checked", set())
    metadata = artifact.path / "zarr.json"
    metadata.write_bytes(b" " * metadata.stat().st_size)
    found = store.find(demo_key())
    assert found is not None
    with pytest.raises(StoreError, match=r"is damaged: .* cannot be opened .*; delete that folder"):
        found["rgb"]


def test_equal_bytes_are_checked_under_every_schema(store: Store) -> None:
    artifact = make_demo(store)
    most = int(artifact["count"][:].max())
    count = demo_schema().variables["count"].model_copy(update={"le": most - 1})
    stricter = demo_schema().model_copy(update={"variables": {**demo_schema().variables, "count": count}})
    with pytest.raises(SchemaError, match="count must be at most"):
        make_demo(store, demo_key(steps=51), stricter)
    other = make_demo(store, demo_key(steps=52))
    promised = other.schema.model_copy(update={"variables": stricter.variables})
    with pytest.raises(SchemaError, match="count: must be at most"):
        Artifact(other.path, other.record.model_copy(update={"promised": promised})).dataset()


def test_an_object_that_is_gone_was_collected_and_its_record_stays(store: Store) -> None:
    artifact = make_demo(store)
    artifact.path.rename(store.root / "elsewhere")
    assert store.find(demo_key()) is None
    assert str(store.explain(demo_key())) == "collected"
    assert [record.hex for record in store.records()] == [artifact.key]
    (store.root / "elsewhere").rename(artifact.path)
    assert store.find(demo_key()) is not None


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "latents/../../outside", "a\\b", "./latents"])
def test_a_record_that_points_outside_its_object_is_refused(store: Store, name: str) -> None:
    make_demo(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    raw = json.loads(path.read_text())
    raw["files"][name] = raw["files"].pop("latents/c/0/0")
    path.write_text(json.dumps(raw))
    assert store.find(demo_key()) is None
    with pytest.raises(StoreError, match="outside its object"):
        read_record(path)


def test_links_are_refused_in_an_object(store: Store, tmp_path: Path) -> None:
    artifact = make_demo(store)
    moved = a_chunk(artifact).rename(tmp_path / "chunk")
    a_chunk(artifact).symlink_to(moved)
    assert store.find(demo_key()) is None
    a_chunk(artifact).unlink()
    moved.rename(a_chunk(artifact))
    assert store.find(demo_key()) is not None
    folder = artifact.path.rename(tmp_path / "object")
    artifact.path.symlink_to(folder)
    assert store.find(demo_key()) is None


@pytest.mark.parametrize("damage", ["{", '{"format": 2}', "swapped", "another list"])
def test_a_damaged_record_is_a_miss_with_a_warning_and_is_made_again(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_demo(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    raw = json.loads(path.read_text())
    if damage == "swapped":
        raw["recipe"]["spec"]["steps"] = 51
    elif damage == "another list":
        del raw["files"]["latents/c/0/0"]
    path.write_text(json.dumps(raw) if len(damage) == 12 or damage == "swapped" else damage)
    with caplog.at_level(logging.WARNING):
        assert store.find(demo_key()) is None
        assert list(store.records()) == []
    assert str(path) in caplog.text
    assert "damaged" in str(store.explain(demo_key()))
    make_demo(store)
    assert store.find(demo_key()) is not None


def test_a_copied_record_is_not_that_of_another_key(store: Store) -> None:
    make_demo(store)
    path = store.layout.record("demo_stage", demo_key().hex)
    other = store.layout.record("demo_stage", demo_key(steps=51).hex)
    other.write_text(path.read_text())
    assert store.find(demo_key(steps=51)) is None


def test_opening_checks_the_schema_and_names_variable_and_rule(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_demo(store)
    monkeypatch.setattr(artifact_module, "_checked", set())
    stricter = artifact.schema.variables["count"].model_copy(update={"ge": 4.5})
    promised = artifact.schema.model_copy(update={"variables": {**artifact.schema.variables, "count": stricter}})
    altered = Artifact(artifact.path, artifact.record.model_copy(update={"promised": promised}))
    with pytest.raises(SchemaError, match=r"demo demo_stage/\w+ breaks its schema: count: must be at"):
        altered["count"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (7,)}, r"count: expected size frame=7, got \[6\]"),
        ({"dims": ("time",)}, "count: expected dims"),
        ({"dtype": "int64"}, "count: expected dtype int64, got 'int32'"),
        ({"sums_to_one": "frame"}, "count: must sum to one over frame"),
    ],
)
def test_opening_names_sizes_and_dimensions(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str
) -> None:
    artifact = make_demo(store)
    monkeypatch.setattr(artifact_module, "_checked", set())
    variable = artifact.schema.variables["count"].model_copy(update=change)
    promised = artifact.schema.model_copy(update={"variables": {**artifact.schema.variables, "count": variable}})
    altered = Artifact(artifact.path, artifact.record.model_copy(update={"promised": promised}))
    with pytest.raises(SchemaError, match=said):
        altered.dataset()


def test_opening_names_other_labels(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = make_demo(store)
    monkeypatch.setattr(artifact_module, "_checked", set())
    promised = artifact.schema.model_copy(update={"coordinates": {"frame": (0, 1, 2, 3, 4, 5)}})
    altered = Artifact(artifact.path, artifact.record.model_copy(update={"promised": promised}))
    with pytest.raises(SchemaError, match="the labels of frame differ"):
        altered["count"]


def test_opening_leaves_large_variables_unread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Schema(
        artifact="large",
        variables={"x": Variable(dims=("frame",), shape=(300_000,), dtype="float32", chunks=(100_000,), finite=True)},
    )
    with store.draft(demo_key(), schema) as draft:
        draft.write(range(1), iter([Block("x", (0,), np.ones(300_000, np.float32))]))
    (draft.artifact.path / "x" / "c" / "1").write_bytes(b"not a chunk")
    monkeypatch.setattr(artifact_module, "_checked", set())
    assert draft.artifact["x"][0] == 1


# records, explanations, runs


def test_a_prefix_names_one_record(store: Store) -> None:
    keys = [make_demo(store, demo_key(steps=steps)).key for steps in range(17)]
    assert store.resolve(keys[3]).hex == keys[3]
    assert store.resolve(f"demo_stage/{keys[3][:12]}").hex == keys[3]
    crowded = next(digit for digit in "0123456789abcdef" if sum(key[0] == digit for key in keys) > 1)
    with pytest.raises(InputError, match=rf"keys begin with '{crowded}' \(demo_stage/{crowded}"):
        store.resolve(crowded)
    for unknown in ("f" * 64, "", "../keys", "xyz", "other_stage/" + keys[3]):
        with pytest.raises(InputError):
            store.resolve(unknown)


class NestedSpec(Frozen):
    prompt: str = "a red ball"
    editor: dict[str, float] | None = None


def test_a_miss_says_which_fields_differ(store: Store) -> None:
    assert str(store.explain(demo_key())) == "nothing like it yet"
    make_demo(store, demo_key(steps=10, version=2))
    make_demo(store, demo_key(steps=50))
    said = store.explain(demo_key(steps=100))
    assert said is not None
    assert (str(said), said.nearest) == ("steps 50 → 100", demo_key(steps=50).hex)
    assert str(store.explain(demo_key(steps=50, version=3))) == "version 1 → 3"
    assert "video is new" in str(store.explain(demo_key(video="ab" * 32)))


def test_a_miss_says_which_field_of_a_nested_spec_differs(store: Store) -> None:
    make_demo(store, ArtifactKey.of("edit", 1, NestedSpec(editor={"guidance": 7.5, "share": 1}), {}))
    asked = ArtifactKey.of("edit", 1, NestedSpec(editor={"guidance": 9, "share": 1}), {})
    assert str(store.explain(asked)) == "editor.guidance 7.5 → 9"


def test_a_miss_follows_its_inputs_to_the_cause(store: Store) -> None:
    first, second = demo_key(steps=50), demo_key(steps=100)
    make_demo(store, first)
    make_demo(store, ArtifactKey.of("edit", 1, NestedSpec(), {"latents": first.hex, "video": "ab" * 32}))
    asked = ArtifactKey.of("edit", 1, NestedSpec(), {"latents": second.hex, "video": "ab" * 32})
    assert str(store.explain(asked)) == "latents from another demo_stage"
    planned = store.explain(asked, upstream={second.hex: second})
    assert str(planned) == "latents from demo_stage (steps 50 → 100)"
    other_video = ArtifactKey.of("edit", 1, NestedSpec(), {"latents": first.hex, "video": "cd" * 32})
    assert str(store.explain(other_video)) == "another video"


def test_of_equals_the_nearest_is_that_whose_inputs_are(store: Store) -> None:
    """What is made of one input alone differs from all others by that one: what that is made from tells them apart."""

    def edit(prompt: str, video: str) -> ArtifactKey:
        return ArtifactKey.of("edit", 1, NestedSpec(prompt=prompt), {"video": video * 32})

    def clip(edited: ArtifactKey) -> ArtifactKey:
        return ArtifactKey.of("clip", 1, NestedSpec(), {"edit": edited.hex})

    mine, others, asked = edit("a red ball", "ab"), edit("a red ball", "cd"), edit("a blue ball", "ab")
    for key in (mine, clip(mine), others, clip(others)):
        make_demo(store, key)
    said = store.explain(clip(asked), {asked.hex: asked})
    assert str(said) == 'edit from edit (prompt "a red ball" → "a blue ball")' and said.nearest == clip(mine).hex


def test_a_cause_is_told_once_however_many_ways_lead_to_it(store: Store) -> None:
    def edit(latents: ArtifactKey) -> tuple[ArtifactKey, ArtifactKey]:
        field = ArtifactKey.of("match", 1, NestedSpec(), {"latents": latents.hex})
        return field, ArtifactKey.of("edit", 1, NestedSpec(), {"latents": latents.hex, "field": field.hex})

    first, second = demo_key(steps=50), demo_key(steps=100)
    for key in (first, *edit(first)):
        make_demo(store, key)
    field, asked = edit(second)
    said = str(store.explain(asked, {key.hex: key for key in (second, field)}))
    assert said.count("steps 50 → 100") == 1 and said.endswith("field from match (latents from demo_stage)")


def test_an_interrupted_draft_is_explained(store: Store) -> None:
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        draft.write(range(2), demo_blocks(range(2)))
        raise KeyboardInterrupt
    assert str(store.explain(demo_key())) == "interrupted, 1 finished parts are kept"


def test_runs_are_kept_newest_first(store: Store) -> None:
    ids = [store.save_run({"prompt": text}) for text in ("ä", "b")]
    assert store.load_run(ids[0]) == {"prompt": "ä", "id": ids[0]}
    assert sorted(run["id"] for run in store.runs()) == sorted(ids)
    assert [run["id"] for run in store.runs()] == sorted(ids, reverse=True)
    for unknown in ("20000101-000000-abcdef", "../format"):
        with pytest.raises(InputError, match="no run"):
            store.load_run(unknown)


# the place


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(StoreError, match="not empty"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file" / "store", tmp_path / "file", Path("/proc/no/store")):
        with pytest.raises(StorePlaceError, match=r"^cannot write a store in \S+ \(.*\); choose another place[^\n]*$"):
            Store(root)


READ_ONLY = """
import sys
from store.errors import StorePlaceError
from store.store import Store
from tests.store.demo import demo_key, demo_schema
store = Store(sys.argv[1])
assert store.find(demo_key()) is not None and store.explain(demo_key()) is None
store.file_hash(__import__("pathlib").Path(sys.argv[1]) / "format")
with store.draft(demo_key(), demo_schema()) as draft:
    assert draft.found and draft.missing() == []
for refused in (store.check_writable, lambda: store.draft(demo_key(steps=51), demo_schema()).__enter__()):
    try:
        refused()
    except StorePlaceError as error:
        assert "choose another place" in str(error)
    else:
        sys.exit("written in a store that is read only")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_read_only_store_is_read(store: Store) -> None:
    make_demo(store)
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    command = [*powerless, sys.executable, "-c", READ_ONLY, str(store.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for folder in folders:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr


def test_space_is_checked_before_work(store: Store) -> None:
    store.check_space(1)
    store.check_writable()
    with pytest.raises(StorePlaceError, match=r"1000000\.0 TB are needed in .* is free"):
        store.check_space(10**18)
    assert 0 < store.free_bytes() < 10**18


def test_opening_and_finding_load_no_heavy_library(store: Store) -> None:
    code = (
        "import sys; from store.store import Store; s = Store(sys.argv[1]); s.find('0' * 64); list(s.records())\n"
        "print([name for name in ('zarr', 'xarray', 'pandera', 'torch', 'prefect') if name in sys.modules])"
    )
    make_demo(store)
    command = [sys.executable, "-c", code, str(store.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

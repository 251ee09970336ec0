"""Whatever is put in place of a file of the store is read as what was written, or refused in one sentence.

FUZZ_EXAMPLES raises the number of cases. What is found goes into corpus/, where test_guard replays it.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.artifact import Artifact
from store.bundle import Bundle, write_bundle
from store.errors import InputError, StoreError
from store.guard import Refused, check_name
from store.keys import canonical_json
from store.moving import StoreSource, chosen_runs, move
from store.records import Record, parse_record
from store.runs import read_run
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo, stopped
from tests.store.hostile import Json, changed, forged, outcome

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
many = settings(max_examples=4 * EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
some = settings(many, max_examples=EXAMPLES)
few = settings(many, max_examples=EXAMPLES // 2)

odd_numbers = st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**18, 10**40, -(10**18), 0.5, 1e308, -0.0])
odd_text = st.one_of(
    st.sampled_from(
        ["", "..", "../x", "/etc/passwd", "latents", "latents/c/0/0", "object", "uint8", "a" * 2000, "\x1b[2J"]
    ),
    st.text(max_size=20),
)
odd = st.recursive(
    st.one_of(st.none(), st.booleans(), odd_numbers, st.integers(), st.floats(allow_nan=False), odd_text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(odd_text, inner, max_size=4)),
    max_leaves=8,
)


def places(document: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path in a JSON document."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path for name, value in pairs for path in [(*above, name), *places(value, (*above, name))]]


@st.composite
def mutated(draw: st.DrawFn, document: Json) -> Json:
    """A document with one to three values replaced, removed, or put where none was."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)))
        grown = draw(st.booleans()) and isinstance(path[-1], str)
        target = [*path[:-1], draw(odd_text)] if grown else list(path)
        document = changed(document, [(target, draw(st.one_of(odd, st.just("…"))) if not grown else draw(odd))])
        if not document:
            return {"a": 1}
    return document


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The record of the demo."""
    store = Store(tmp_path_factory.mktemp("fuzz") / "store")
    artifact = make_demo(store)
    return store.layout.record(artifact.stage, artifact.key).read_bytes()


def read(data: bytes) -> Record | None:
    """The record in `data`, None where it is refused as it should be."""
    record, refusal = outcome(lambda: parse_record(data, "the bundle"), StoreError)
    assert record or ("the bundle" in refusal and refusal.isprintable() and len(refusal) < 1000)
    return record


def holds(read: Any, written: Any) -> bool:
    """Whether everything that was written was read, defaults filled in beside it."""
    if isinstance(written, dict) and isinstance(read, dict):
        return all(name in read and holds(read[name], value) for name, value in written.items())
    return canonical_json(read) == canonical_json(written)


@many
@given(st.data())
def test_a_changed_record_is_read_as_written_or_refused(written: bytes, data: st.DataObject) -> None:
    document = data.draw(mutated(json.loads(written)))
    document = forged(document) if data.draw(st.booleans()) else document
    record = read(json.dumps(document).encode(errors="surrogatepass"))
    if record:
        assert holds(json.loads(record.to_json()), document)
        assert len(record.files) <= 1000


@many
@given(st.data())
def test_bytes_changed_anywhere_never_give_another_record(written: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(written)))
    removed = data.draw(st.integers(0, 3))
    put = data.draw(
        st.one_of(st.binary(max_size=3), st.sampled_from([b"0", b"9", b"-", b"e9", b'"', b"{", b"\\u0000"]))
    )
    record = read(written[:at] + put + written[at + removed :])
    assert record in (None, parse_record(written, "the store"))


@many
@given(st.one_of(st.binary(max_size=200), odd.map(lambda value: json.dumps(value).encode(errors="surrogatepass"))))
def test_anything_else_is_no_record(data: bytes) -> None:
    assert read(data) is None


@many
@given(st.one_of(st.text(max_size=40), st.from_regex(r"[a-zA-Z0-9./\\:_-]{1,30}", fullmatch=True)))
def test_a_name_that_is_taken_stays_below_its_folder_on_any_system(name: str) -> None:
    _, refusal = outcome(lambda: check_name(name), Refused)
    if refusal:
        assert refusal.isprintable()
        return
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        assert not path.is_absolute()
        assert not path.drive
        assert ".." not in path.parts
        assert list(path.parts) == name.split("/")


@some
@given(st.one_of(odd_text, st.from_regex(r"(\w{0,8}/)?[0-9a-f]{0,64}", fullmatch=True), st.text(max_size=80)))
def test_any_key_on_the_command_line_names_one_record_or_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "keys")
    made = make_demo(store)
    record, refusal = outcome(lambda: store.resolve(text), InputError)
    assert record.hex == made.key if record else refusal
    _, refusal = outcome(lambda: store.load_run(text), InputError)
    assert refusal


@some
@given(st.data())
def test_a_changed_run_is_read_as_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "20260101-000000-abcdef.json"
    stages = [{"stage": "edit", "key": "ab" * 32, "hit": True, "seconds": 1.5, "bytes": 7}]
    run = {"id": path.stem, "command": "run", "config": {"prompts": ["a"]}, "video": "v", "store": "s",
           "stages": stages, "outputs": [{"file": "a.mp4", "prompt": "a"}], "seconds": 2}  # fmt: skip
    changed_run = data.draw(mutated(run))
    path.write_bytes(json.dumps(changed_run).encode(errors="surrogatepass"))
    read_back, refusal = outcome(lambda: read_run(path), StoreError)
    assert read_back == changed_run if read_back else (str(path) in refusal and refusal.isprintable())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the demo was stopped after its last part."""
    store = Store(tmp_path_factory.mktemp("interrupted") / "store")
    with stopped(), store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        raise KeyboardInterrupt
    return store.root


@few
@given(st.data())
def test_a_changed_marker_never_changes_what_is_made(
    interrupted: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "resumed"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(shutil.copytree(interrupted, root))
    marker = store.layout.draft("demo_stage", demo_key().hex) / "parts" / f"{data.draw(st.integers(0, 2))}.json"
    document = data.draw(mutated(json.loads(marker.read_bytes())))
    document["attrs"] = {}  # an attribute may be anything that a stage found, and a marker has no seal
    marker.write_bytes(json.dumps(document).encode(errors="surrogatepass"))
    artifact, refusal = outcome(lambda: resumed(store), StoreError)
    if artifact is None:  # a marker that lies about what was written may cost the draft, and then all is done again
        assert "\n" not in refusal
        artifact = resumed(store)
    assert store.verify(artifact.record) == []
    assert artifact.digest == make_demo(Store(tmp_path_factory.getbasetemp() / "keys")).digest


def resumed(store: Store) -> Artifact:
    with store.draft(demo_key(), demo_schema()) as draft:
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
    return draft.artifact


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, set[str]]:
    """A bundle of one run, and the digests of what is in it."""
    folder = tmp_path_factory.mktemp("bundle")
    store = Store(folder / "store")
    digest = make_demo(store).digest
    made = {"config": {}, "video": "clip.mp4", "outputs": [], "store": ""}
    run = store.save_run({"command": "run", **made, "stages": [{"stage": "demo_stage", "key": demo_key().hex}]})
    source = StoreSource(store)
    write_bundle(chosen_runs(source, run), source, folder / "run.zip")
    return (folder / "run.zip").read_bytes(), {digest}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one to three stretches replaced, cut out, put in or doubled, anywhere."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 300)))
        data = data[:start] + draw(st.one_of(st.binary(max_size=8), st.just(2 * data[start:stop]))) + data[stop:]
    return data


@some
@given(data=st.data())
def test_a_damaged_bundle_gives_what_was_in_it_or_is_refused(
    bundled: tuple[bytes, set[str]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("colleague")
    (folder / "run.zip").write_bytes(data.draw(damaged(bundled[0])))
    store = Store(folder / "store")
    with suppress(InputError, StoreError), Bundle(folder / "run.zip", store.layout.drafts) as bundle:
        move(chosen_runs(bundle, None), bundle, store)
    assert sorted(path.name for path in folder.iterdir()) == ["run.zip", "store"]
    for record in store.records():
        assert record.digest in bundled[1] and store.verify(record) == []
    shutil.rmtree(folder)

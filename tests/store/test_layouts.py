"""Stores survive versions: one that an older version wrote opens, is read and goes on; a newer one is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store import artifact as artifact_module
from store.errors import StoreError
from store.layout import FORMAT
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, make_demo
from tests.store.fixtures.make import STOPPED

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(params=range(1, FORMAT + 1))
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the store that a version of this layout wrote, and what it holds."""
    monkeypatch.setattr(artifact_module, "_checked", set())
    with zipfile.ZipFile(FIXTURES / f"store-{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "store" / "format").read_text() == f"{request.param}\n"
    return tmp_path


def held(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "expected.json").read_text())


def test_there_is_a_fixture_of_every_layout_up_to_todays() -> None:
    assert {path.name for path in FIXTURES.glob("*.zip")} == {f"store-{number}.zip" for number in range(1, FORMAT + 1)}
    assert all(path.stat().st_size < 200_000 for path in FIXTURES.glob("*.zip"))


def test_everything_that_was_written_is_found_read_and_verified(written: Path) -> None:
    store = Store(written / "store")
    assert len(held(written)) == len(list(store.records())) == 3
    for key, variables in held(written).items():
        artifact = store.find(key)
        assert artifact is not None
        assert store.verify(artifact.record) == []
        assert set(artifact) == set(variables)
        for name, values in variables.items():
            np.testing.assert_array_equal(artifact[name][:], values)
            np.testing.assert_array_equal(artifact.dataset()[name], values)


def test_reading_changes_nothing(written: Path) -> None:
    before = {path: path.read_bytes() for path in (written / "store").rglob("*") if path.is_file()}
    test_everything_that_was_written_is_found_read_and_verified(written)
    assert [run["outputs"][0]["file"] for run in Store(written / "store").runs()] == ["clip-edit.mp4"]
    assert {path: path.read_bytes() for path in (written / "store").rglob("*") if path.is_file()} == before


def test_todays_code_asks_the_same_keys_and_makes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    found = Store(written / "store").find(demo_key())
    assert found is not None
    assert make_demo(Store(tmp_path / "new")).digest == found.digest


def test_a_draft_that_was_stopped_then_goes_on(written: Path) -> None:
    store = Store(written / "store")
    with store.draft(demo_key(steps=STOPPED), demo_schema()) as draft:
        assert draft.missing() == [range(2, 4), range(4, 6)]
        for part in draft.missing():
            draft.write(part, demo_blocks(part))
        draft.attrs["fps"] = 24.0
    assert draft.artifact.digest == make_demo(store).digest


def test_the_number_is_raised_with_the_first_thing_that_is_written(written: Path) -> None:
    store = Store(written / "store")
    make_demo(store)  # is there already: nothing is written
    make_demo(store, demo_key(steps=7))
    assert (written / "store" / "format").read_text() == f"{FORMAT}\n"
    assert len(list(Store(written / "store").records())) == 4


@pytest.mark.parametrize("number", [str(FORMAT + 1), "0", "", "two", "1\n2", "١", "\x1b[31m", "9" * 99])
def test_a_newer_or_garbled_layout_is_refused_with_the_way_out(store: Store, number: str) -> None:
    store.layout.format.write_text(number)
    with pytest.raises(
        StoreError, match=r"^the store \S+ has layout .*reads layouts 1 and 2; choose another place"
    ) as said:
        Store(store.root)
    assert str(said.value).isprintable()


def test_a_format_file_that_is_none_is_refused(store: Store, tmp_path: Path) -> None:
    store.layout.format.write_bytes(b"2" * 1_000_000)
    with pytest.raises(StoreError, match="format: it has more than 100 bytes; choose another place"):
        Store(store.root)
    (tmp_path / "elsewhere").write_text("2\n")
    store.layout.format.unlink()
    store.layout.format.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="format: it is a link"):
        Store(store.root)

"""Promises of tables: what goes in comes out of CSV and of Zarr, and a value that breaks its rule is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray

from store.errors import InputError, SchemaError
from store.tables import Column, make_table, write_table

COLUMNS = {
    "prompt": Column("what was asked", text=True),
    "share": Column("a share", ge=0, le=1),
    "psnr": Column("a ratio", units="dB"),
}
ROWS = [
    {"prompt": 'a "red" ball, on\nsnow', "share": 0.25, "psnr": 31.5},
    {"prompt": "ein blauer Bär 🐻", "psnr": 20.0},
]


def test_a_table_comes_back_from_both_files(tmp_path: Path) -> None:
    csv, zarr = write_table(make_table("edits", COLUMNS, ROWS), tmp_path)
    frame = pandas.read_csv(csv)
    opened = xarray.open_zarr(zarr).load()
    assert list(frame["prompt"]) == [str(text) for text in opened["prompt"].values] == [row["prompt"] for row in ROWS]
    for values in (frame["share"].to_numpy(), opened["share"].values):
        np.testing.assert_array_equal(values, [0.25, np.nan])
    assert opened["psnr"].attrs == {"description": "a ratio", "units": "dB"}


def test_a_value_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(SchemaError, match="share"):
        make_table("edits", COLUMNS, [{"prompt": "a", "share": 1.5}])


def test_a_column_nobody_knows_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="colour"):
        make_table("edits", COLUMNS, [{"colour": 1.0}])


def test_writing_again_replaces_both_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_table(make_table("edits", COLUMNS, ROWS), tmp_path)
    write_table(make_table("edits", COLUMNS, ROWS[:1]), tmp_path)
    assert len(pandas.read_csv(tmp_path / "edits.csv")) == xarray.open_zarr(tmp_path / "edits.zarr").sizes["row"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edits.csv", "edits.zarr"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_table(make_table("edits", COLUMNS, ROWS), tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())

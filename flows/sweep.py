"""Many edits of one video: every prompt in every setting, in the order that reuses most, to choose from.

The store is what makes it resumable: a sweep that is stopped, and asked for again, finds what it had finished.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.media.sheets import contact_sheet, save_png
from store.artifact import Artifact
from store.errors import InputError, StorePlaceError
from store.layout import write_whole
from store.schemas import Arrays
from store.store import Store
from store.tables import Column, make_table, write_table

from .engine import Wanted
from .export import Unpadded, check_picture, export_edit, make_folder
from .grid import Combination, check_room, forecast
from .run import clip_files, run_edit
from .runtime import check_device, model_kept
from .scores import SCORES, Scorer, Scores
from .suite import Metrics
from .sweep_page import write_page
from .tasks import Progress

if TYPE_CHECKING:
    import xarray

Say = Callable[[str], None]
SHEET_COLUMNS, SHEET_ROWS = 8, 60  # frames in a row; edits on one picture


def unheard(sentence: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Edited:
    """One edit of a sweep that is done: its clip, keys and scores; or why it could not be made.

    computed   stages that this sweep had to compute; none of an edit that was there
    """

    combination: Combination
    file: Path
    scores: Scores = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    seconds: float = 0.0
    run: str | None = None
    fault: str | None = None

    @property
    def lines(self) -> str:
        """What was asked, and its scores in a line of their own, which no length of the first cuts off."""
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in self.scores.items())
        return f"{self.combination.label}\n{scores}"

    def to_json(self) -> dict[str, Any]:
        """One entry of `sweep.json`; the file is relative to its folder."""
        each = self.combination
        return {
            "number": each.number, "prompt": each.prompt, "choice": each.choice, "fault": self.fault,
            "file": None if self.fault else self.file.name, "scores": self.scores, "keys": self.keys,
            "computed": list(self.computed), "seconds": round(self.seconds, 3), "run": self.run,
        }  # fmt: skip


@dataclass(frozen=True)
class Swept:
    """What a sweep gave: its edits as they were asked for, and the files to choose from."""

    edits: list[Edited]
    files: dict[str, str]
    store: str

    def dataset(self) -> xarray.Dataset:
        """The table of edits and their scores, along the dimension `row`."""
        import xarray

        return xarray.open_zarr(self.files["zarr"], chunks=None)

    @property
    def failed(self) -> list[Edited]:
        """Edits that could not be made."""
        return [each for each in self.edits if each.fault]

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `tf sweep --json`."""
        return {"edits": [each.to_json() for each in self.edits], "files": self.files, "store": self.store}


class Sweep:
    """Combinations of one video that are to be edited into a folder.

    raises   InputError, before anything is computed, where a clip could not be written, or its engine has no runner
    """

    def __init__(
        self, combinations: Sequence[Combination], store: Store, folder: Path, metrics: Metrics,
        engine: Wanted = "direct", say: Say = unheard, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.combinations, self.store, self.engine = combinations, store, engine
        self.say, self.progress = say, progress
        runner = combinations[0].plan.runtime.runner
        if runner != "here" and engine == "direct":
            raise InputError(f"--runner {runner} is Prefect's, and a sweep does without it; say --engine prefect too")
        if combinations[0].plan.runtime.keep_alpha:
            raise InputError(
                "--keep-alpha: the clips of a sweep are .mp4, for its page, and hold no transparency; leave it out, "
                "and say it of the one you choose: tf run --like CLIP -o edit.webm --keep-alpha"
            )
        self.score = Scorer(store, metrics)
        self.folder = make_folder(folder)
        self.files = {each.number: self.folder / clip_name(each) for each in combinations}
        for each in combinations:
            clip_files(each.plan, self.files[each.number])
        check_picture(self.folder / "sheet.png")
        self.ahead = forecast(combinations)
        check_room(store, self.ahead)
        self.done: dict[int, Edited] = {}
        self.said: set[str] = set()

    def run(self) -> Swept:
        """Make every edit, one after the other; one that the model cannot make stops no other.

        The page is there from the first edit on, and grows.
        """
        if self.ahead.compute and self.combinations[0].plan.runtime.runner == "here":
            check_device(self.combinations[0].plan)
        with self.store.lease({key for each in self.combinations for key in each.plan.keys}), model_kept():
            for place, each in enumerate(self.combinations, 1):
                each.plan.look_again()
                self.say(f"edit {place} of {len(self.combinations)}: {each.label}")
                self.done[each.number] = self._edited(each)
                self._write()
            files = {**self._write(), **self._tables(), **self._sheets()}
        return Swept(self._in_order(), files, self.store.place)

    def _edited(self, each: Combination) -> Edited:
        file = self.files[each.number]
        try:
            result = run_edit(each.plan, file, self.engine, self.progress)
        except StorePlaceError:
            raise
        except InputError as error:  # of this edit: its latents became NaN, or it does not fit the GPU
            self.say(f"{each.label}: {error}")
            return Edited(each, file, fault=" ".join(str(error).split()))
        for note in result.notes:
            if note not in self.said:
                self.say(note)
        self.said.update(result.notes)
        edit, frames = self._artifacts(each)
        return Edited(
            each, file, self.score(each.plan, edit, frames), {use.node.stage: use.node.key.hex for use in result.uses},
            tuple(use.node.stage for use in result.uses if not use.hit), result.seconds, result.run,
        )  # fmt: skip

    def _artifacts(self, each: Combination) -> tuple[Artifact, Artifact]:
        """The edit and the frames it was made of; leased, so both are there."""
        edit, frames = each.plan.find(each.edit), each.plan.find(each.plan.decode)
        assert edit is not None and frames is not None, "a run has what it was asked for"
        return edit, frames

    def _in_order(self) -> list[Edited]:
        return [self.done[number] for number in sorted(self.done)]

    def _made(self) -> list[Edited]:
        return [each for each in self._in_order() if not each.fault]

    def _write(self) -> dict[str, str]:
        """`sweep.json` and `index.html`, of what is done so far; sources are exported as they are needed."""
        sources = {each.combination.number: self._source(each.combination).name for each in self._made()}
        answer, page = self.folder / "sweep.json", self.folder / "index.html"
        entries = [each.to_json() for each in self._in_order()]
        try:
            write_whole(answer, json.dumps({"edits": entries}, indent=1, ensure_ascii=False) + "\n")
            plan, flow = self.combinations[0].plan, self.score.estimator.name
            write_page(page, plan, entries, sources, len(self.combinations), flow)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written ({error.strerror}); choose another folder") from None
        return {"page": str(page), "json": str(answer)}

    def _source(self, each: Combination) -> Path:
        """The frames that an edit was made of, as a clip; once per decoding."""
        file = self.folder / f"source-{each.plan.decode.key.hex[:8]}.mp4"
        if not file.is_file():
            _, frames = self._artifacts(each)
            export_edit(frames, frames, file, step=each.plan.decode.spec.step, source=None)
        return file

    def _tables(self) -> dict[str, str]:
        """`sweep.csv`, and the same as Zarr, for xarray."""
        rows = [self._row(each) for each in self._in_order()]
        tried = dict.fromkeys(name for each in self.combinations for name in each.choice)
        columns = {
            "prompt": Column("what the edit was asked to show", text=True),
            **{name: Column(f"{name} of the edit", text=True) for name in tried},
            **SCORES,
            "file": Column("the clip", text=True),
            "key": Column("of the edit's artifact: what was asked", text=True),
            "run": Column("for tf report; empty where the edit was there already", text=True),
            "fault": Column("why there is no clip", text=True),
        }
        csv, zarr = write_table(make_table("sweep", columns, rows), self.folder)
        return {"csv": str(csv), "zarr": str(zarr)}

    def _row(self, each: Edited) -> dict[str, Any]:
        choice = {name: str(value) for name, value in each.combination.choice.items()}
        return {
            "prompt": each.combination.prompt, **choice, **each.scores, "file": "" if each.fault else each.file.name,
            "key": each.combination.edit.key.hex, "run": each.run or "", "fault": each.fault or "",
        }  # fmt: skip

    def _sheets(self) -> dict[str, str]:
        """`sheet.png`, and `sheet-2.png` … where there are more edits than one picture holds."""
        made, files = self._made(), {}
        for number, start in enumerate(range(0, len(made), SHEET_ROWS), 1):
            chosen = made[start : start + SHEET_ROWS]
            name = "sheet" if number == 1 else f"sheet-{number}"
            frames = self._artifacts(chosen[0].combination)[1]
            rows = [("source", _shown(Unpadded(frames, frames)))]
            rows += [(each.lines, _shown(Unpadded(*self._artifacts(each.combination)))) for each in chosen]
            save_png(contact_sheet(rows, columns=SHEET_COLUMNS), self.folder / f"{name}.png")
            files[name] = str(self.folder / f"{name}.png")
        return files


def clip_name(each: Combination) -> str:
    """What the clip of a combination is called: by its prompt and its key, so that another grid moves no name."""
    words = re.sub(r"\W+", "-", each.prompt.lower()).strip("-")[:40].strip("-") or "edit"
    return f"{words}-{each.edit.key.hex[:8]}.mp4"


def _shown(clip: Arrays) -> np.ndarray[Any, Any]:
    """The frames of a clip that a sheet shows: rgb (frame, height, width, channel) uint8, and no others read."""
    count = clip["rgb"].shape[0]
    places = np.unique(np.linspace(0, count - 1, min(SHEET_COLUMNS, count)).round().astype(int))
    return np.concatenate([clip["rgb"][place : place + 1] for place in places.tolist()])

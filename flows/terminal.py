"""What a person sees: progress on stderr, tables and answers on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from store.layout import human_bytes
from store.records import Record

if TYPE_CHECKING:
    from store.summaries import Summary

    from .doctor import Finding
    from .grid import Forecast
    from .listing import Video
    from .plan import Node, Plan
    from .sweep import Swept
    from .tasks import Use

PIPE_COLUMNS = 200  # where nobody's window limits a table
FILES_SHOWN = 20  # of an artifact that may have thousands


def _console(to_stderr: bool) -> Console:
    """Prints what it is given: no markup, since prompts and paths may hold brackets and colons."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(stderr=to_stderr, highlight=False, markup=False, emoji=False, width=width)


stdout, stderr = _console(False), _console(True)


class Bars:
    """A bar per stage on stderr while it runs; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self.bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=stderr, disable=not stderr.is_terminal,
        )  # fmt: skip
        self.task: Any = None

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.bars.stop()

    def begin(self, node: Node, total: int, done: int = 0) -> None:
        """A bar for this stage; it begins where interrupted runs have come."""
        prompt = f" · {node.prompt!r}" if node.prompt is not None else ""
        self.task = self.bars.add_task(f"{node.stage}{prompt}", total=max(1, total + done), completed=done)

    def advance(self, units: int) -> None:
        """Move the current bar."""
        if self.task is not None:
            self.bars.advance(self.task, units)

    def end(self, finished: bool = True) -> None:
        """The current bar is full, or stays where it is."""
        if self.task is not None and finished:
            self.bars.update(self.task, completed=self.bars.tasks[self.bars.task_ids.index(self.task)].total)
        self.task = None

    def note(self, sentence: str) -> None:
        """One line above the bars."""
        self.bars.console.print(f"tf: {sentence}", highlight=False)


class Gauges:
    """A bar per stage of a run that goes on elsewhere; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self.bars = Progress(
            BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}", markup=False),
            console=stderr, disable=not stderr.is_terminal,
        )  # fmt: skip
        self.draws = not self.bars.disable
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Gauges:
        self.bars.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.bars.stop()

    def show(self, key: str, words: str, percent: float) -> None:
        """So far has the stage come."""
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(words, total=100)
        self.bars.update(self.tasks[key], completed=percent, description=words)


@contextmanager
def byte_bar(title: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on stderr that counts bytes; gives (begin with so many, so many more are done)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=not stderr.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda total: bars.update(task, total=total), lambda done: bars.advance(task, done)


@contextmanager
def looking_shown() -> Iterator[None]:
    """While this block runs a plan that has to look at a video's frames shows how far it is."""
    from .shots import watch

    token = watch.set(_frame_bar)
    try:
        yield
    finally:
        watch.reset(token)


@contextmanager
def _frame_bar(title: str, frames: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while frames are looked at, gone afterwards."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    shown = Progress(
        *columns, TimeRemainingColumn(), console=stderr, disable=not stderr.is_terminal, transient=True
    )  # fmt: skip
    with shown as bars:
        task = bars.add_task(title, total=frames)
        yield lambda done: bars.advance(task, done)


def say(sentence: str) -> None:
    """One line to the user, on stderr."""
    print(f"tf: {sentence}", file=sys.stderr)


def stage_table(uses: Sequence[Use]) -> Table:
    """Stages of a run: reused or computed, seconds of this run, bytes on disk."""
    table = Table("stage", "", "key", "prompt", box=None, pad_edge=False)
    for name in ("seconds", "bytes"):
        table.add_column(name, justify="right")
    for use in uses:
        done = "reused" if use.hit else "computed"
        seconds = "–" if use.hit else f"{use.seconds:.1f}"
        key, prompt = use.node.key.hex[:12], use.node.prompt or ""
        table.add_row(use.node.stage, done, key, prompt, seconds, human_bytes(use.artifact.nbytes))
    return table


def sweep_plan_table(ahead: Forecast) -> Table:
    """What a sweep needs of each stage: artifacts, each counted once, and those that would be computed."""
    table = Table("stage", box=None, pad_edge=False)
    for name in ("artifacts", "to compute"):
        table.add_column(name, justify="right")
    for stage, (artifacts, compute) in ahead.stages.items():
        table.add_row(stage, str(artifacts), str(compute))
    return table


def sweep_table(swept: Swept) -> Table:
    """The edits of a sweep with their scores."""
    from .grid import setting
    from .scores import columns

    measured = columns([each.scores for each in swept.edits])
    table = Table("", "prompt", "setting", "", box=None, pad_edge=False)
    for name in measured:
        table.add_column(name.replace("_", " "), justify="right")
    for each in swept.edits:
        how = "failed" if each.fault else "computed" if each.computed else "reused"
        scores = [f"{each.scores[name]:.3f}" if name in each.scores else "–" for name in measured]
        table.add_row(
            str(each.combination.number), each.combination.prompt, setting(each.combination.choice), how, *scores
        )
    return table


def plan_table(plan: Plan, rows: Sequence[dict[str, Any]]) -> Table:
    """Stages of a plan: hit or miss, bytes to be written, and why."""
    table = Table("stage", "", "key", "prompt", box=None, pad_edge=False)
    table.add_column("to write", justify="right")
    table.add_column("why", overflow="fold")
    for row, node in zip(rows, plan.nodes, strict=True):
        table.add_row(
            row["stage"], "reuse" if row["hit"] else "compute" if row["compute"] else "–", row["key"][:12],
            node.prompt or "", human_bytes(row["bytes"]) if row["compute"] else "–", row["why"] or "",
        )  # fmt: skip
    return table


def listing(videos: Sequence[Video]) -> list[Table]:
    """What the store holds, a table per video: stage, key, prompt, size, age, and whether it is pinned or collected."""
    tables = []
    for video in videos:
        shape = [f"{video.width}×{video.height}"] if video.width else []
        shape += ["1 frame" if video.frames == 1 else f"{video.frames} frames"] if video.frames else []
        title = " · ".join([video.name, *shape, *video.models, human_bytes(video.bytes)])
        table = Table("stage", "key", "prompt", title=title, title_justify="left", box=None, pad_edge=False)
        for name in ("bytes", "age"):
            table.add_column(name, justify="right")
        table.add_column("")
        for each in video.artifacts:
            known = each.summary
            state = ", ".join(["pinned"] * each.pinned + ["collected"] * (not each.there))
            row = (known.stage, known.hex[:12], known.prompt or "", human_bytes(known.bytes), age(known.created))
            table.add_row(*row, state)
        tables.append(table)
    return tables


def record_text(record: Record, path: str | None, dependents: Sequence[Summary] = ()) -> Table:
    """An artifact: its recipe, variables, provenance, files, what was made from it, and how to open it."""
    table = Table.grid(padding=(0, 2))
    recipe = record.recipe
    rows = [
        ("key", f"{record.stage}/{record.hex}"),
        ("spec", ", ".join(f"{name} = {value!r}" for name, value in recipe.spec.items()) or "–"),
        ("version", str(recipe.version)),
        *((f"from {role}", key) for role, key in recipe.inputs.items()),
        *(
            (f"  {name}", f"({', '.join(v.dims)}) {'×'.join(map(str, v.shape))} {v.dtype}  {v.description}")
            for name, v in record.promised.variables.items()
        ),
        ("digest", record.digest),
        ("made", f"{record.created}, {record.seconds:.1f} s, {human_bytes(record.bytes)} in {len(record.files)} files"),
        ("by", ", ".join(f"{name} {value}" for name, value in record.provenance.items())),
        ("for", ", ".join(f"{n} {v!r}" for n, v in record.note.items() if v) if isinstance(record.note, dict) else ""),
        (
            "open",
            f"xarray.open_zarr({path!r}, chunks=None)" if path else "removed from the store; a run makes it again",
        ),
        *((f"used by {each.stage}", f"{each.hex}  {each.prompt or ''}".rstrip()) for each in dependents),
        *((f"file {name}", f"{entry.size} bytes") for name, entry in list(record.files.items())[:FILES_SHOWN]),
    ]
    if len(record.files) > FILES_SHOWN:
        rows.append(("", f"and {len(record.files) - FILES_SHOWN} more files; --json names them all"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """What `tf doctor` found, and the way out of what is wrong."""
    table = Table("", "what", "found", box=None, pad_edge=False)
    for finding in findings:
        way_out = f"\n→ {finding.way_out}" if finding.way_out else ""
        table.add_row("ok" if finding.ok else "!!", finding.what, finding.found + way_out)
    return table


def age(created: str) -> str:
    """How long ago, in one unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"

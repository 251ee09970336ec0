"""What a person sees: progress on stderr, tables and answers on stdout."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from store.layout import human_bytes
from store.records import Record

if TYPE_CHECKING:
    from .doctor import Finding
    from .plan import Node, Plan
    from .tasks import Use

PIPE_COLUMNS = 200  # where nobody's window limits a table


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

    def begin(self, node: Node, total: int) -> None:
        """A bar for this stage."""
        prompt = f" · {node.prompt!r}" if node.prompt is not None else ""
        self.task = self.bars.add_task(f"{node.stage}{prompt}", total=max(1, total))

    def advance(self, units: int) -> None:
        """Move the current bar."""
        if self.task is not None:
            self.bars.advance(self.task, units)

    def end(self) -> None:
        """The current bar is full."""
        if self.task is not None:
            self.bars.update(self.task, completed=self.bars.tasks[self.bars.task_ids.index(self.task)].total)
            self.task = None

    def note(self, sentence: str) -> None:
        """One line above the bars."""
        self.bars.console.print(f"tf: {sentence}", highlight=False)


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


def listing(records: Sequence[Record]) -> list[Table]:
    """What the store holds, a table per video: stage, key, prompt, size, age."""
    videos: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.created):
        note = record.note if isinstance(record.note, dict) else {}
        videos[str(note.get("video", "unknown video"))].append(record)
    tables = []
    for video, own in videos.items():
        table = Table("stage", "key", "prompt", title=video, title_justify="left", box=None, pad_edge=False)
        for name in ("bytes", "age"):
            table.add_column(name, justify="right")
        for record in own:
            note = record.note if isinstance(record.note, dict) else {}
            prompt = str(note.get("prompt") or "")
            table.add_row(record.stage, record.hex[:12], prompt, human_bytes(record.bytes), age(record.created))
        tables.append(table)
    return tables


def record_text(record: Record, path: str | None) -> Table:
    """An artifact: its recipe, variables, provenance, and how to open it."""
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
    ]
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

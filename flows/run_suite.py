"""`tf eval` from beginning to end: the suite that is meant, its tables, and its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from store.errors import InputError
from store.store import Store
from store.tables import make_table, write_table

from .config import EditConfig, RuntimeConfig, make_runtime, parse_bytes
from .evaluate import Evaluation, Evaluator
from .evaluation_page import write_page
from .export import make_folder
from .measure import FIELD_TABLE, TABLE
from .suite import Metrics, Suite, read_suite, suite_of
from .tasks import Progress

ALLOWED = (
    "--store",
    "--device",
    "--frames-per-pass",
    "--token-budget",
    "--cache-size",
)  # beside a suite: nothing that changes results


def chosen_suite(
    given: dict[str, Any], configs: Callable[[dict[str, Any]], tuple[EditConfig, RuntimeConfig]],
    changed: Sequence[str], clip_model: str | None, flow: str,
) -> tuple[Suite, RuntimeConfig]:  # fmt: skip
    """The suite in a .toml file, or one of a single video edited as the options say.

    given     values of the edit options by name, the video or suite among them
    changed   the options that were given, which a suite file does not take
    """
    if flow not in ("auto", "raft", "dis"):
        raise InputError(f"--flow {flow!r}: have auto, raft, dis")
    metrics = {"flow": flow, "clip_model": clip_model}
    if Path(given["video"]).suffix != ".toml":
        config, runtime = configs(given)
        return suite_of(config, Metrics.model_validate(metrics)), runtime
    refused = [option for option in changed if option not in ALLOWED]
    if refused:
        raise InputError(f"{refused[0]} does not go with a suite; write it into {given['video']}, under [options]")
    suite = read_suite(Path(given["video"]))
    named = {name: value for name, value in metrics.items() if value not in (None, "auto")}
    runtime = make_runtime(
        device=given["device"], frames_per_pass=given["frames_per_pass"], precision=given["precision"],
        token_budget=parse_bytes(given["token_budget"]), allow_pickle=given["allow_pickle"],
    )  # fmt: skip
    return suite.model_copy(update={"metrics": suite.metrics.model_copy(update=named)}), runtime


def run_suite(
    suite: Suite, runtime: RuntimeConfig, store: Store, output: Path | None, say: Callable[[str], None],
    progress: Progress | None = None,
) -> tuple[Evaluation, dict[str, str]]:  # fmt: skip
    """Carry the suite out, and write its tables and its page into `output`, `<suite>-eval` without it."""
    evaluator = Evaluator(suite, runtime, store, say, progress)  # refuses what cannot be used before anything is made
    folder = make_folder(output or Path(f"{suite.name}-eval"))
    evaluation = evaluator.run()
    files: dict[str, str] = {}
    tables = [("edits", TABLE, evaluation.rows), ("field", FIELD_TABLE, evaluation.field_rows)]
    for name, columns, rows in tables:
        if rows:
            csv, zarr = write_table(make_table(name, columns, rows), folder)
            files |= {f"{name}.csv": str(csv), f"{name}.zarr": str(zarr)}
    page = folder / "summary.html"
    write_page(evaluation, page)
    return evaluation, {**files, "page": str(page)}

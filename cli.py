"""tf: edit videos with text, and look after what was computed. Heavy imports happen inside the commands."""

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from flows.plan import Plan
    from store.store import Store

# Read by the libraries when they are imported. A machine that is also used for something else must not stall OpenMP:
# threads that spin while they wait made a UNet pass 10 times slower beside another process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
for quiet in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(quiet, "error")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Edit a video with a prompt, then with another: what does not depend on the prompt is computed once.",
)  # fmt: skip

StoreOption = Annotated[
    str | None, typer.Option("--store", envvar="TOKENFLOW_STORE", metavar="URL", help="Where artifacts are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def edit_options(
    video: Annotated[Path, typer.Argument(help="The video to edit.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What the edit shows; give it again for another edit.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="ID|DIR|FILE|pocket", help="The text-to-image model.")] = "pocket",
    source_prompt: Annotated[str, typer.Option(help="What the video shows.")] = "",
    frames: Annotated[
        str | None, typer.Option(metavar="START:STOP[:STEP]", help="Which frames; all without it.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Frame size; as large as the source without it.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of the edit.")] = 50,
    inversion_steps: Annotated[int | None, typer.Option(help="Inversion steps; as many as --steps without it.")] = None,
    inversion_evaluations: Annotated[
        int, typer.Option(help="Of the model per inversion step; beyond 1 each refines the step.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the keyframe schedule and of an editor's noise.")] = 0,
    editor: Annotated[str, typer.Option(metavar="NAME", help="Editing base: pnp or sdedit.")] = "pnp",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the editor, e.g. feature=0.6.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance, 1 is none; 7.5 or what the model advises without it."),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    keyframe_interval: Annotated[int, typer.Option(help="Frames per keyframe.")] = 8,
    keyframe_offsets: Annotated[int, typer.Option(help="Places in an interval that a keyframe may have.")] = 2,
    attended_keyframes: Annotated[int, typer.Option(help="Beyond so many, not all keyframes attend to all.")] = 16,
    blend: Annotated[
        str, typer.Option(help="How two keyframes are mixed: linear, sigmoid, nearest or previous.")
    ] = "linear",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    frames_per_pass: Annotated[int, typer.Option(help="Frames the model sees at once: memory, not results.")] = 16,
    token_budget: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of tokens that may be kept.")] = "8GiB",
    store: StoreOption = None,
) -> "Plan":
    """Read the options that run, plan and preview share, and plan the run."""
    from flows.config import make_config, make_runtime, parse_bytes, parse_settings
    from flows.plan import Plan

    config = make_config(
        video=video, prompts=tuple(prompt or ()), model=model, source_prompt=source_prompt, frames=frames, size=size,
        steps=steps, inversion_steps=inversion_steps, inversion_evaluations=inversion_evaluations, seed=seed,
        editor=editor, editor_settings=parse_settings(set_ or []), guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        keyframe_interval=keyframe_interval, keyframe_offsets=keyframe_offsets, attended_keyframes=attended_keyframes,
        blend=blend,
    )  # fmt: skip
    runtime = make_runtime(device=device, frames_per_pass=frames_per_pass, token_budget=parse_bytes(token_budget))
    return Plan(config, runtime, open_store(store))


def open_store(place: str | None) -> "Store":
    """The store named by --store or TOKENFLOW_STORE, or the one in the platform's user cache folder."""
    from store.errors import InputError
    from store.store import Store

    if place is not None and not place.strip():
        raise InputError("--store is empty; name a folder, or leave it out")
    if place is None:
        import platformdirs

        place = platformdirs.user_cache_dir("tokenflow")
    return Store(place)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `tf`: its errors become one sentence and an exit code; `plan` stands for the edit options."""
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "plan"]
    shared = list(inspect.signature(edit_options).parameters.values())
    wants_plan = len(own) < len(inspect.signature(function).parameters)

    def guarded(**given: Any) -> None:
        try:
            arguments = {p.name: given[p.name] for p in own}
            if wants_plan:
                arguments["plan"] = edit_options(**{p.name: given[p.name] for p in shared})
            function(**arguments)
        except (Exception, KeyboardInterrupt) as error:
            raise SystemExit(explained(error)) from None

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in [*(shared if wants_plan else []), *own]]
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__doc__, guarded.__name__ = function.__doc__, function.__name__
    return app.command(function.__name__.rstrip("_"))(guarded)


def explained(error: BaseException) -> int:
    """Say what went wrong in one sentence on stderr; returns the exit code."""
    from store.errors import InputError, TokenflowError

    if isinstance(error, KeyboardInterrupt):
        print("tf: interrupted; what was finished is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("TOKENFLOW_DEBUG"):
        raise error
    sentence = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, TokenflowError):
        sentence = f"unexpected {type(error).__name__}: {sentence} (TOKENFLOW_DEBUG=1 shows where)"
    print(f"tf: {sentence}", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1


def print_json(answer: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(answer, ensure_ascii=False, indent=1))


EngineOption = Annotated[str, typer.Option(help="Who walks the stages: auto, prefect or direct.")]


@command
def run(
    plan: "Plan",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The video to write.")] = None,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Edit a video, once per prompt."""
    _perform("run_edit", plan, output, engine, as_json)


@command
def preview(
    plan: "Plan",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The picture (.png) to write.")] = None,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Edit only the keyframes, and show them as a picture."""
    _perform("run_preview", plan, output, engine, as_json)


@command
def plan_(plan: "Plan", as_json: JsonOption = False) -> None:
    """Say what a run would compute, reuse and write, and why."""
    from flows.run import explain_plan
    from flows.terminal import plan_table, say, stdout

    rows = explain_plan(plan)
    to_write = sum(row["bytes"] for row in rows)
    if as_json:
        print_json({"stages": rows, "bytes": to_write, "store": str(plan.store.root), "notes": plan.notes})
        return
    for note in plan.notes:
        say(note)
    stdout.print(plan_table(plan, rows))
    stdout.print(plan.summary())


@command
def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what the store holds, by video."""
    from flows.terminal import listing, stdout

    records = list(open_store(store).records())
    if as_json:
        print_json({"artifacts": [_described(record) for record in records]})
        return
    for table in listing(records):
        stdout.print(table)
    if not records:
        stdout.print("the store is empty; tf run VIDEO --prompt TEXT fills it")


@command
def show(
    key: Annotated[str, typer.Argument(help="The first digits of a key.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact: its recipe, what came out, and how to open it."""
    from flows.terminal import record_text, stdout

    opened = open_store(store)
    record = opened.resolve(key)
    artifact = opened.find(record.recipe)
    path = str(artifact.path) if artifact else None
    if as_json:
        print_json({**json.loads(record.to_json()), "path": path})
    else:
        stdout.print(record_text(record, path))


@command
def export(
    key: Annotated[str, typer.Argument(help="The first digits of an edit's key.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The video to write.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an edit that is in the store as a video."""
    from flows.export import export_key

    written = export_key(open_store(store), key, output)
    if as_json:
        print_json(written.model_dump(mode="json"))
    else:
        print(written.file)


@command
def sheet(
    videos: Annotated[list[Path], typer.Argument(help="Videos, one row each.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture (.png) to write.")],
    label: Annotated[list[str] | None, typer.Option(help="A label per video, in order.")] = None,
    columns: Annotated[int, typer.Option(min=1, max=64, help="Frames in a row.")] = 8,
) -> None:
    """Draw videos below each other as a contact sheet."""
    from flows.export import video_sheet
    from store.errors import InputError

    labels = label or [video.stem for video in videos]
    if len(labels) != len(videos):
        raise InputError(f"{len(videos)} videos but {len(labels)} labels; give --label once per video")
    video_sheet(videos, labels, columns, output)
    print(output)


@command
def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Look at this machine, and say what is wrong and the way out."""
    from flows.doctor import examine
    from flows.terminal import findings_table, stdout

    findings = examine(lambda: open_store(store))
    if as_json:
        print_json({"findings": [finding.model_dump() for finding in findings]})
    else:
        stdout.print(findings_table(findings))
    if any(not finding.ok for finding in findings):
        raise SystemExit(1)


def _described(record: Any) -> dict[str, Any]:
    return {
        "key": record.hex, "stage": record.stage, "bytes": record.bytes, "seconds": record.seconds,
        "created": record.created, "note": record.note,
    }  # fmt: skip


def _perform(name: str, plan: "Plan", output: Path | None, engine: str, as_json: bool) -> None:
    """Run an edit or a preview with progress on stderr, and print what came of it."""
    import flows.run
    from flows.engine import Wanted
    from flows.terminal import Bars, say, stage_table, stdout
    from store.errors import InputError

    if engine not in get_args(Wanted):
        raise InputError(f"--engine {engine!r}: have {', '.join(get_args(Wanted))}")
    for note in plan.notes:
        say(note)
    with Bars() as bars:
        result = getattr(flows.run, name)(plan, output, engine, bars)
    for note in result.notes:
        say(note)
    if as_json:
        print_json(result.to_json())
        return
    stdout.print(stage_table(result.uses))
    for each in result.outputs:
        print(each["file"])


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tokenflow {version('tokenflow')}")
        raise typer.Exit


@app.callback()
def main_options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Edit a video with a prompt, then with another: what does not depend on the prompt is computed once."""


def main() -> None:
    """The `tf` command."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("tf: %(message)s"))
    logging.getLogger("store").addHandler(warnings)
    try:
        code = app(prog_name="tf", standalone_mode=False)
    except TyperException as error:
        raise SystemExit(_usage(error)) from None
    except typer.Abort:
        raise SystemExit(130) from None
    raise SystemExit(code or 0)


def _usage(error: TyperException) -> int:
    """Say in one sentence what the command line itself got wrong; nothing but `tf` asks for help."""
    context = getattr(error, "ctx", None)
    place = context.command_path if context else "tf"
    if not sys.argv[1:]:
        print(context.get_help() if context else "tf --help says what there is")
    else:
        sentence = " ".join(error.format_message().split()).rstrip(".")
        print(f"tf: {sentence[:1].lower()}{sentence[1:]}; see {place} --help", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()

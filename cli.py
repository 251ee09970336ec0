"""tf: edit videos with text, and look after what was computed. Heavy imports happen inside the commands."""

import atexit
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from flows.config import EditConfig, RuntimeConfig
    from flows.plan import Plan
    from flows.run import Result
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

inspections = typer.Typer(
    no_args_is_help=True, help="Look at what is known of a clip, and at what an edit keeps of it."
)
app.add_typer(inspections, name="inspect")

StoreOption = Annotated[
    str | None, typer.Option("--store", envvar="TOKENFLOW_STORE", metavar="DIR|URL", help="Where artifacts are kept.")
]


def _limit_cache(size: str | None) -> str | None:
    if size:
        os.environ["TOKENFLOW_CACHE_SIZE"] = size
    return size


CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size", metavar="SIZE", callback=_limit_cache,
        help="What the copy of a shared store may take on this machine; TOKENFLOW_CACHE_SIZE, or 20GB without it.",
    ),
]  # fmt: skip
PoolOption = Annotated[str, typer.Option(metavar="NAME", help="The work pool; made where there is none.")]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Open weights that are no .safetensors too: they may hold code.")
]
CodecOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="h264, hevc, av1, vp9, prores; what the ending of the file stands for without."),
]
QualityOption = Annotated[
    int | None, typer.Option(help="Of the clip, 0 to 100 on the same scale for every codec; 80 without it.")
]
PixelFormatOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of the clip, such as yuv444p or yuv420p10le.")
]
KeepAlphaOption = Annotated[
    bool,
    typer.Option("--keep-alpha", help="The clip is transparent where the source is: .mov, .webm, .webp, .gif, PNGs."),
]
SourceRateOption = Annotated[
    bool, typer.Option("--source-rate", help="Frames that --fps left out are shown again, as those before them.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def edit_options(
    video: Annotated[Path | None, typer.Argument(help="The video to edit.", show_default=False)] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What the edit shows; give it again for another edit.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="ID|DIR|FILE|pocket", help="The text-to-image model.")] = "pocket",
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="A LoRA on top of the model; give it again for another."),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:TOKEN]", help="A word learnt by textual inversion; give it again for another."),
    ] = None,
    prompt_weighting: Annotated[
        bool,
        typer.Option("--prompt-weighting", help="Read (words)1.3, words++ and long prompts as compel does."),
    ] = False,
    source_prompt: Annotated[str, typer.Option(help="What the video shows.")] = "",
    frames: Annotated[
        str | None, typer.Option(metavar="START:STOP[:STEP]", help="Which frames; all without it.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second to edit, of those there are; times, length and sound stay.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Frame size; as large as the source without it.")
    ] = None,
    letterbox: Annotated[
        str,
        typer.Option(
            metavar="auto|keep|T,R,B,L",
            help="Black bars: cut off for the edit where they are found, edited along, or of so many pixels.",
        ),
    ] = "auto",
    background_colour: Annotated[
        str, typer.Option(metavar="COLOUR", help="Under what is transparent: a name such as white, or #RRGGBB.")
    ] = "black",
    vae_tiling: Annotated[
        str,
        typer.Option(metavar="auto|on|off", help="Encode and decode frames in tiles, for less memory; auto: large."),
    ] = "auto",
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="fast, balanced or best: options that were not given take its values.")
    ] = "balanced",
    steps: Annotated[int | None, typer.Option(help="Denoising steps of the edit; 50 without it.")] = None,
    inversion_steps: Annotated[int | None, typer.Option(help="Inversion steps; as many as --steps without it.")] = None,
    inversion_evaluations: Annotated[
        int, typer.Option(help="Of the model per inversion step; 1 is plain DDIM, each further one refines the step.")
    ] = 2,
    solver: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddim, or dpmpp_2m: of second order, for fewer steps.")
    ] = None,
    timestep_spacing: Annotated[
        str, typer.Option(metavar="NAME", help="auto, leading, trailing, linspace, or lcm: with a LoRA of LCM.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the keyframe schedule and of an editor's noise.")] = 0,
    editor: Annotated[
        str, typer.Option(metavar="NAME", help="pnp, ddpm, sdedit, controlnet; per-frame, joint.")
    ] = "pnp",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the editor, e.g. feature=0.6.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:MODEL][:STRENGTH[:START-STOP]]",
            help="For --editor controlnet: canny, softedge, depth, openpose or given, such as canny:DIR:0.8.",
        ),
    ] = None,
    control_video: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Control images of a --control given: a video or a folder."),
    ] = None,
    canny_thresholds: Annotated[
        str, typer.Option(metavar="LOW-HIGH", help="Of the edges that --control canny finds.")
    ] = "100-200",
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance, 1 is none; 7.5 or what the model advises without it."),
    ] = None,
    guidance_start: Annotated[
        float | None, typer.Option(help="Share of the steps before which guidance is off.")
    ] = None,
    guidance_stop: Annotated[float | None, typer.Option(help="Share of the steps after which guidance is off.")] = None,
    guidance_rescale: Annotated[
        float, typer.Option(help="How far contrast that guidance adds is taken back; 0: not at all, 1: wholly.")
    ] = 0.0,
    feature_reuse: Annotated[
        int | None, typer.Option(help="Every how many steps deep features are computed anew; 1: at every step.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    mask: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO|FOLDER|PICTURE", help="White is edited, black is kept as in the source."),
    ] = None,
    mask_from: Annotated[
        str | None,
        typer.Option(
            metavar="cross-attention:WORD|sam:FOLDER@X,Y",
            help="Edit what a word of the source prompt names, or a SAM model finds at points of the first frame.",
        ),
    ] = None,
    keep_background: Annotated[
        str | None, typer.Option(metavar="WORD", help="Short for --mask-from cross-attention:WORD.")
    ] = None,
    mask_feather: Annotated[
        int | None, typer.Option(help="Width of the mask's soft edge in pixels; half a latent pixel without it.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MASK=PROMPT",
            help="A prompt of its own where MASK (as of --mask, or cross-attention:WORD) is white; give it again for "
            "another, which lies over it.",
        ),
    ] = None,
    keyframe_interval: Annotated[int, typer.Option(help="Frames per keyframe.")] = 8,
    keyframe_offsets: Annotated[
        int | None, typer.Option(help="Places in an interval that a keyframe may have; 2 without it.")
    ] = None,
    cuts: Annotated[
        str,
        typer.Option(metavar="auto|none|N,N…", help="Where new shots begin: as found, nowhere, or at these frames."),
    ] = "auto",
    keyframe_placement: Annotated[
        str, typer.Option(metavar="NAME", help="interval, or adaptive: shorter intervals where more moves.")
    ] = "interval",
    attended_keyframes: Annotated[int, typer.Option(help="Beyond so many, not all keyframes attend to all.")] = 8,
    blend: Annotated[
        str, typer.Option(help="How two keyframes are mixed: linear, sigmoid, nearest or previous.")
    ] = "linear",
    deflicker: Annotated[
        float, typer.Option(help="0 to 1: how far patches of the picture are drawn to their keyframes' colours.")
    ] = 0.0,
    match_colours: Annotated[
        float, typer.Option(help="0 to 1: how far pictures are moved to the source's colours on the whole.")
    ] = 0.0,
    decoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="An autoencoder with the same latents, such as a temporal one, to decode with."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    frames_per_pass: Annotated[
        int | None, typer.Option(help="Frames the model sees at once, memory only; as many as fit without it.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the model: float32, float16 or bfloat16; auto: float16 on a GPU only.")
    ] = "auto",
    token_budget: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of tokens that may be kept.")] = "8GiB",
    codec: CodecOption = None,
    quality: QualityOption = None,
    pixel_format: PixelFormatOption = None,
    keep_alpha: KeepAlphaOption = False,
    source_rate: SourceRateOption = False,
    allow_pickle: PickleOption = False,
    runner: Annotated[
        str, typer.Option(metavar="NAME", help="here; dask or ray: the run's parts are spread over several workers.")
    ] = "here",
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the Dask scheduler or Ray cluster; two workers here without.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Options by name, and the video; what is said here wins."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="RUN|CLIP", help="All that an earlier run was asked, but for what is said here."),
    ] = None,
    store: StoreOption = None,
    cache_size: CacheOption = None,
) -> None:
    """The options that run, plan and preview share."""


def planned(given: dict[str, Any]) -> "Plan":
    """The run that the values of `edit_options` by name ask for."""
    from flows.plan import Plan
    from flows.terminal import looking_shown

    with looking_shown():
        return Plan(*configs(given), open_store(given["store"]))


def configs(given: dict[str, Any]) -> "tuple[EditConfig, RuntimeConfig]":
    """What is asked, and how it is done, from the values of `edit_options` by name."""
    from flows.options import config_of, options_of, runtime_of

    options = options_of(given)
    return config_of(options), runtime_of(options)


def open_store(place: str | None) -> "Store":
    """The store named by --store or TOKENFLOW_STORE, or the one in the platform's user cache folder."""
    from flows.places import store_at

    return store_at(place)


def command(function: Callable[..., None], of: typer.Typer = app) -> Callable[..., None]:
    """A command of `tf`, or of one of its groups: its errors become one sentence and an exit code.

    A parameter `plan` stands for the edit options, read and planned; `given` for the same options as they were given,
    and `said` for the names of those that the command line says.
    """
    named = inspect.signature(function).parameters
    own = [p for p in named.values() if p.name not in ("plan", "given", "said")]
    shared = list(inspect.signature(edit_options).parameters.values()) if len(own) < len(named) else []

    def guarded(context: typer.Context, **given: Any) -> None:
        try:
            arguments = {p.name: given[p.name] for p in own}
            said = frozenset(p.name for p in shared if _is_said(p.name, context))
            options = _complete({p.name: given[p.name] for p in shared}, said) if shared else {}
            if "plan" in named:
                arguments["plan"] = planned(options)
            if "given" in named:
                arguments["given"] = options
            if "said" in named:
                arguments["said"] = said
            function(**arguments)
        except (Exception, KeyboardInterrupt) as error:
            raise SystemExit(explained(error)) from None

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=p.KEYWORD_ONLY) for p in [*shared, *own])]
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__doc__, guarded.__name__ = function.__doc__, function.__name__
    return of.command(function.__name__.rstrip("_"))(guarded)


def _is_said(name: str, context: typer.Context) -> bool:
    """Whether an option stands on the command line itself."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _complete(options: dict[str, Any], said: frozenset[str]) -> dict[str, Any]:
    """The edit options with those of --config and --like where nothing was said on the command line."""
    if options["video"] and not (options["config"] or options["like"]):
        return options
    from flows.options import completed

    return completed(options, said, open_store)


def inspection(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `tf inspect`."""
    return command(function, of=inspections)


def explained(error: BaseException) -> int:
    """Say what went wrong in one sentence on stderr; returns the exit code."""
    from store.errors import InputError, Terminated, TokenflowError

    if isinstance(error, KeyboardInterrupt):
        ended = isinstance(error, Terminated)
        how = "terminated" if ended else "interrupted"
        print(f"tf: {how}; what was finished is kept, and the next run goes on from there", file=sys.stderr)
        logging.getLogger("asyncio").disabled = True  # it names each task of Prefect's that the end cuts short
        return 143 if ended else 130
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
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The clip: .mp4, .mov, .mkv, .webm, .gif, .webp, or a folder of PNGs."),
    ] = None,
    engine: EngineOption = "auto",
    detach: Annotated[
        bool, typer.Option("--detach", help="Hand the run to a worker and return: see tf up, tf watch, tf cancel.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Edit a video, once per prompt."""
    if detach:
        _detach("detach", (plan, output), plan.notes, as_json)
    else:
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
def reproduce(
    sidecar: Annotated[Path, typer.Argument(metavar="FILE.json", help="What tf run wrote beside a clip.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The video to write; without it FILE, which only replaces that very clip."),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Where the video is now.")] = None,
    model: Annotated[str | None, typer.Option(metavar="ID|DIR|FILE|pocket", help="Where the model is now.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    frames_per_pass: Annotated[
        int | None, typer.Option(help="Frames the model sees at once, memory only; as many as fit without it.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the model: float32, float16 or bfloat16; auto: float16 on a GPU only.")
    ] = "auto",
    token_budget: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of tokens that may be kept.")] = "8GiB",
    allow_pickle: PickleOption = False,
    engine: EngineOption = "auto",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a clip again from the file beside it, or say what would not be the same."""
    from flows.config import make_runtime, parse_bytes
    from flows.reproduce import output_again, plan_again, same_edit, verdict
    from flows.terminal import looking_shown, say

    runtime = make_runtime(
        device=device, frames_per_pass=frames_per_pass, precision=precision, token_budget=parse_bytes(token_budget),
        allow_pickle=allow_pickle,
    )  # fmt: skip
    opened = open_store(store)
    with looking_shown():
        plan, then = plan_again(sidecar, opened, runtime, video=video, model=model, output=output)
    result = _performed("run_edit", plan, output_again(sidecar, then, output, opened), engine)
    say(verdict(then, result))
    _print_result(result, as_json, identical=same_edit(then, result))


@command
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, latest, or a clip that tf run wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page (.html) to write; report-RUN.html without it.")
    ] = None,
    flow: Annotated[str, typer.Option(help="Optical flow where the true one is unknown: auto, raft or dis.")] = "auto",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page about a run: its clips side by side, how steady they are, keys, times and settings."""
    from flows.report import write_report

    written = write_report(open_store(store), run, output, flow)
    if as_json:
        print_json(written)
    else:
        print(written["file"])


@command
def plan_(plan: "Plan", as_json: JsonOption = False) -> None:
    """Say what a run would compute, reuse and write, and why."""
    from flows.explain import explain_plan
    from flows.terminal import plan_table, say, stdout

    rows = explain_plan(plan)
    to_write = sum(row["bytes"] for row in rows)
    free = plan.store.free_bytes()
    if as_json:
        where = {"free": free, "store": plan.store.place}
        print_json({"stages": rows, "bytes": to_write, **where, "notes": plan.notes})
        return
    for note in plan.notes:
        say(note)
    stdout.print(plan_table(plan, rows))
    stdout.print(plan.summary())
    stdout.print(plan.room(free))


@command
def eval_(
    given: dict[str, Any],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The folder for tables and page.")] = None,
    clip_model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="A CLIP model, to measure text alignment and consistency.")
    ] = None,
    flow: Annotated[str, typer.Option(help="Optical flow where the true one is unknown: auto, raft or dis.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure edits: of a video, beside per-frame editing and the autoencoder alone, or of a SUITE.toml."""
    from flows.evaluation_page import as_json as answer
    from flows.evaluation_page import definitions, summarized, summary_table
    from flows.run_suite import chosen_suite, run_suite
    from flows.terminal import Bars, looking_shown, say, stdout

    suite, runtime = chosen_suite(given, configs, _changed(given), clip_model, flow)
    with Bars() as bars, looking_shown():
        evaluation, files = run_suite(suite, runtime, open_store(given["store"]), output, say, bars)
    if as_json:
        print_json(answer(evaluation, files))
        return
    stdout.print(summary_table(evaluation))
    for sentence in definitions(summarized(evaluation)[0]):
        stdout.print(f"  {sentence}")
    for file in files.values():
        print(file)


@command
def sweep(
    given: dict[str, Any],
    said: frozenset[str],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with a prompt on each line, beside any --prompt.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V,V…", help="Values of an option to try, or of an editor's: pnp.attention=0.3,0.5."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="The folder; VIDEO-sweep without it.")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only say what would be shared and computed.")] = False,
    clip_model: Annotated[
        str | None, typer.Option(metavar="ID|DIR", help="A CLIP model, to score text alignment and consistency.")
    ] = None,
    flow: Annotated[str, typer.Option(help="Optical flow where the true one is unknown: auto, raft or dis.")] = "auto",
    engine: EngineOption = "direct",
    detach: Annotated[
        bool, typer.Option("--detach", help="Hand the edits to a worker and return: see tf up, tf watch, tf cancel.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Edit a video in every combination of prompts and settings, and lay them side by side to choose from."""
    if detach:
        _check_detached({
            "--plan": only_plan, "-o": output, "--clip-model": clip_model, "--flow": flow != "auto",
            "--engine": engine != "direct",
        })  # fmt: skip
    from flows.run_sweep import plan_sweep, run_sweep
    from flows.terminal import Bars, looking_shown, say, stdout, sweep_plan_table, sweep_table

    with looking_shown():
        ready = plan_sweep(given, said, prompts, grid or (), open_store(given["store"]))
    if only_plan:
        if as_json:
            print_json(ready.to_json())
            return
        stdout.print(sweep_plan_table(ready.ahead))
        print(ready.ahead.sentence())
        return
    if detach:
        say(ready.ahead.sentence())
        notes = dict.fromkeys(note for each in ready.combinations for note in each.plan.notes)
        _detach("detach_sweep", (ready,), [*notes, AFTERWARDS], as_json)
        return
    with Bars() as bars:
        swept = run_sweep(ready, output, {"flow": flow, "clip_model": clip_model}, _checked_engine(engine), say, bars)
    if as_json:
        print_json(swept.to_json())
    else:
        stdout.print(sweep_table(swept))
        for file in swept.files.values():
            print(file)
    if swept.failed:
        say(f"{len(swept.failed)} of {len(swept.edits)} edits could not be made; the page says why")
        raise SystemExit(1)


def _changed(given: dict[str, Any]) -> list[str]:
    """Options of an edit that were given another value than the one they have without being given."""
    defaults = {p.name: p.default for p in inspect.signature(edit_options).parameters.values()}
    return ["--set" if name == "set_" else "--" + name.replace("_", "-") for name, value in given.items()
            if name in defaults and name != "video" and value != defaults[name]]  # fmt: skip


FolderOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="The folder for the pictures; VIDEO-inspect without it."),
]
LayerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Self-attention layer; the decoder's last and finest without it.")
]
TimestepOption = Annotated[
    int | None, typer.Option(help="One of those the steps visit, 0 to 999; the cleanest without it.")
]
FromOption = Annotated[int | None, typer.Option("--from", metavar="FRAME", help="The frame to rebuild from.")]


@inspection
def swap(
    given: dict[str, Any], output: FolderOption = None, from_: FromOption = None, layer: LayerOption = None,
    timestep: TimestepOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Rebuild frames from another's tokens. Beside them its warped pixels, true frames, and PSNR by distance."""
    _inspect("swap", given, output, as_json, donor=from_, layer_name=layer, timestep=timestep)


@inspection
def warp(
    given: dict[str, Any], output: FolderOption = None, from_: FromOption = None, layer: LayerOption = None,
    timestep: TimestepOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Rebuild frames from another's pixels. The same pictures as swap, under this name."""
    _inspect("warp", given, output, as_json, donor=from_, layer_name=layer, timestep=timestep)


@inspection
def field(
    given: dict[str, Any], output: FolderOption = None,
    side: Annotated[str, typer.Option(help="Which keyframe: the previous or the next.")] = "previous",
    layer: LayerOption = None, timestep: TimestepOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Draw the field that edits follow. Where each match lies, how alike it is, and how far from the truth."""
    _inspect("field", given, output, as_json, side=side, layer_name=layer, timestep=timestep)


@inspection
def pca(
    given: dict[str, Any], output: FolderOption = None,
    row: Annotated[int | None, typer.Option(help="Image row of the x-t slice; the middle one without it.")] = None,
    layer: LayerOption = None, timestep: TimestepOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Draw tokens as colours over time. And one image row over time, with a --prompt of two edits as well."""
    _inspect("pca", given, output, as_json, row=row, layer_name=layer, timestep=timestep)


@inspection
def reconstruct(given: dict[str, Any], output: FolderOption = None, as_json: JsonOption = False) -> None:
    """Invert and sample back with no edit. Beside the source and the autoencoder alone, with PSNR."""
    _inspect("reconstruct", given, output, as_json)


@command
def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what the store holds, by video."""
    from flows.listing import listed_json, videos
    from flows.terminal import listing, stdout

    found = videos(open_store(store))
    if as_json:
        print_json({"artifacts": listed_json(found)})
        return
    for table in listing(found):
        stdout.print(table)
    if not found:
        stdout.print("the store is empty; tf run VIDEO --prompt TEXT fills it")


@command
def show(
    key: Annotated[str, typer.Argument(help="The first digits of a key.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact: its recipe, what came out, what was made from it, and how to open it."""
    from flows.terminal import record_text, stdout
    from store.summaries import below

    opened = open_store(store)
    record = opened.resolve(key)
    artifact = opened.find(record.recipe)
    path = None
    if artifact:  # one of a shared store is fetched when it is read
        path = str(artifact.path) if artifact.path.is_dir() else f"{opened.place}/objects/{artifact.digest}"
    dependents = below([record.hex], opened.summaries())
    if as_json:
        named = [{"stage": each.stage, "key": each.hex, "prompt": each.prompt} for each in dependents]
        print_json({**json.loads(record.to_json()), "path": path, "dependents": named})
    else:
        stdout.print(record_text(record, path, dependents))


KeysArgument = Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="The first digits of keys.")]


@command
def verify(
    keys: KeysArgument = None,
    mend: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged, so that the next run computes it again.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte with what was written: of the artifacts named, or of the whole store."""
    from flows.upkeep import verdict_lines, verified

    verdict = verified(open_store(store), keys or (), mend)
    if as_json:
        print_json({"ok": verdict.ok, **verdict.model_dump(mode="json")})
    else:
        print("\n".join(verdict_lines(verdict)))
    if not verdict.ok:
        raise SystemExit(1)


@command
def gc(
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove the least recently used until so much is left: 20GB.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was last used longer ago: 30d, 12h.")
    ] = None,
    keep_edits: Annotated[bool, typer.Option("--keep-edits", help="Keep edits, whatever their age.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give disk space back: what is removed comes back by itself when it is needed."""
    from flows.upkeep import collected, collection_lines

    collection = collected(open_store(store), max_size, older_than, keep_edits, dry_run)
    if as_json:
        print_json(collection.model_dump(mode="json"))
    else:
        print("\n".join(collection_lines(collection)))


@command
def pin(keys: KeysArgument = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Never collect these artifacts."""
    _pin(keys, store, as_json, pinned=True)


@command
def unpin(keys: KeysArgument = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Let these artifacts be collected again."""
    _pin(keys, store, as_json, pinned=False)


def _pin(keys: list[str] | None, store: str | None, as_json: bool, pinned: bool) -> None:
    from flows.upkeep import pin

    opened = open_store(store)
    changed = pin(opened, keys or (), pinned)
    if as_json:
        print_json({"pinned" if pinned else "unpinned": changed, "pins": sorted(opened.pins())})
    else:
        print("\n".join(changed))


@command
def explain(
    named: Annotated[str, typer.Argument(metavar="RUN|KEY", help="The id of a run, latest, or a key's first digits.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Another of its stage; the nearest without it.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which field of which stage made two artifacts differ, or why a run computed what it did."""
    from flows.explain import explain_keys, explain_run, explanation_lines
    from store.collect import is_run

    opened = open_store(store)
    answer = explain_run(opened, named) if is_run(named) and other is None else explain_keys(opened, named, other)
    if as_json:
        print_json(answer)
    else:
        print("\n".join(explanation_lines(answer)))


@command
def export(
    key: Annotated[str, typer.Argument(metavar="KEY|RUN", help="The first digits of an edit's key, or a run.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The clip: .mp4, .mov, .mkv, .webm, .gif, .webp, or a folder of PNGs."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE.zip", help="Write the run and all it needs, for tf pull --from FILE.zip."),
    ] = None,
    codec: CodecOption = None,
    quality: QualityOption = None,
    pixel_format: PixelFormatOption = None,
    keep_alpha: KeepAlphaOption = False,
    source_rate: SourceRateOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an edit that is in the store as a video, or a run as a bundle for a colleague without access."""
    from flows.config import make_runtime
    from flows.export import export_key
    from store.errors import InputError

    if bundle and not output:
        _export_bundle(key, open_store(store), bundle, as_json)
        return
    if output is None or bundle:
        raise InputError("name one thing to write: a video with -o, or a bundle with --bundle")
    asked = make_runtime(
        codec=codec or "auto", quality=quality, pixel_format=pixel_format, keep_alpha=keep_alpha,
        source_rate=source_rate,
    )  # fmt: skip
    encoding = asked.encoding
    written = export_key(open_store(store), key, output, encoding)
    if as_json:
        print_json(written.model_dump(mode="json"))
    else:
        print(written.file)


def _export_bundle(run: str, store: "Store", file: Path, as_json: bool) -> None:
    from flows.places import bundle
    from store.layout import human_bytes

    written = bundle(run, store, file)
    if as_json:
        print_json(written)
        return
    lost = f"; collected or damaged, can be made again: {len(written['lost'])}" if written["lost"] else ""
    print(f"{file}: {written['artifacts']} artifacts, {human_bytes(written['bytes'])}{lost}")


@command
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or latest.")],
    to: Annotated[str, typer.Option(metavar="DIR|URL", help="The store to send it to.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a run and all it needs to another store; what is there already is skipped."""
    import flows.places
    from flows.terminal import say

    _print_moved(flows.places.push(run, open_store(store), to, say), as_json)


@command
def pull(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The id of a run, or latest; all without it.")
    ] = None,
    from_: Annotated[
        str, typer.Option("--from", metavar="DIR|URL|FILE.zip", help="The store, or a bundle of tf export.")
    ] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a run and all it needs from another store or a bundle; what is here already is skipped."""
    import flows.places
    from flows.terminal import say

    _print_moved(flows.places.pull(run, open_store(store), from_, say), as_json)


def _print_moved(moved: Any, as_json: bool) -> None:
    if as_json:
        print_json(moved.to_json())
    else:
        print(moved)


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
def bench(
    sizes: Annotated[list[str] | None, typer.Argument(metavar="[pocket|mini|full]...", help="What to measure.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.json", help="Where the figures go as well.")
    ] = None,
    scale: Annotated[bool, typer.Option("--scale", help="Also a long clip against a short one (pocket).")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also the ten costliest operators of every stage.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: the bare model, the method as published, and tf, on the same work."""
    from benchmarks.bench import lines_of, run_bench
    from flows.terminal import say
    from store.layout import write_whole

    chosen = sizes or ["pocket", "mini"]
    result = run_bench(chosen, scale=scale, device=device, precision=precision, profile=profile, say=say)
    if output:
        write_whole(output, json.dumps(result, indent=1) + "\n")
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines_of(result)))


@command
def up(
    port: Annotated[int | None, typer.Option(help="Of the server; 4200 without it.", min=1, max=65535)] = None,
    pool: PoolOption = "tokenflow",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a Prefect server, a worker and the deployments on this machine, in the background."""
    from flows.desk import up as start
    from flows.terminal import say

    desk, begun = start(port, pool, store, say)
    if as_json:
        print_json({"started": begun, **desk.model_dump()})
        return
    say(f"{'up' if begun else 'is up already'}: logs in {desk.logs}; tf down ends it")
    print(desk.ui)


@command
def down(
    now: Annotated[bool, typer.Option("--now", help="Cancel what is running first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """End what tf up started, and nothing else."""
    from flows.desk import down as end
    from flows.terminal import say

    desk = end(now, say)
    if as_json:
        print_json({"ended": desk is not None})
    else:
        say("nothing was up" if desk is None else f"ended: {desk.ui}")


@command
def deploy(
    pool: PoolOption = "tokenflow",
    pool_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Of a pool that is to be made: process, docker or kubernetes."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register the deployments of prefect.yaml with the Prefect server."""
    from flows.engine import use_server

    url = use_server()
    from flows.deployments import deploy as register

    names = register(pool, pool_type, store)
    if as_json:
        print_json({"api": url, "pool": pool, "deployments": names})
    else:
        print("\n".join(names))


RunArgument = Annotated[
    str, typer.Argument(metavar="[RUN]", help="Id of a flow run, the beginning of it, its name, or latest.")
]


@command
def watch(run: RunArgument = "latest", as_json: JsonOption = False) -> None:
    """Follow a run until it ends; Ctrl-C ends the watching, not the run."""
    from flows.engine import use_server
    from flows.terminal import Gauges, say

    use_server()
    from flows.following import watch as follow
    from flows.remote_control import find_run, outcome

    found = find_run(run)
    try:
        ended = follow(found, say, Gauges())
    except KeyboardInterrupt:
        say(f"no longer watched; it goes on: tf watch {found.id}")
        raise SystemExit(130) from None
    if as_json:
        print_json(outcome(ended))
    raise SystemExit({"COMPLETED": 0, "CANCELLED": 130}.get(ended.state.type.value if ended.state else "", 1))


@command
def cancel(run: RunArgument = "latest", as_json: JsonOption = False) -> None:
    """Have a run stop, wherever it runs; what it finished is kept."""
    from flows.engine import use_server
    from flows.terminal import say

    use_server()
    from flows.remote_control import cancel as stop
    from flows.remote_control import find_run, outcome

    ended = stop(find_run(run), say)
    if as_json:
        print_json(outcome(ended))


@command
def doctor(
    mend: Annotated[
        bool,
        typer.Option("--mend", help="Mark flow runs whose process is dead as Crashed, so that they can be retried."),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine, and say what is wrong and the way out."""
    from flows.doctor import examine
    from flows.terminal import findings_table, stdout

    findings = examine(lambda: open_store(store), mend)
    if as_json:
        print_json({"findings": [finding.model_dump() for finding in findings]})
    else:
        stdout.print(findings_table(findings))
    if any(not finding.ok for finding in findings):
        raise SystemExit(1)


def _inspect(what: str, given: dict[str, Any], output: Path | None, as_json: bool, **options: Any) -> None:
    """Draw one inspection with progress on stderr, and print its table and its files."""
    from flows.inspection.request import inspect_request, read_request
    from flows.terminal import Bars, looking_shown, say, stdout

    with looking_shown():
        request = read_request(given, configs, _changed(given), open_store(given["store"]))
    for note in request.plan.notes:
        say(note)
    with Bars() as bars:
        done = inspect_request(what, request, output, say, bars, **options)
    if as_json:
        print_json(done.to_json())
        return
    if done.rows:
        stdout.print(done.table())
    for sentence in done.sentences():
        stdout.print(sentence)
    for file in done.files.values():
        print(file)


def _perform(name: str, plan: "Plan", output: Path | None, engine: str, as_json: bool) -> None:
    """Run an edit or a preview, and print what came of it."""
    _print_result(_performed(name, plan, output, engine), as_json)


AFTERWARDS = "the edits go into the store; once they are there, the same without --detach lays them side by side"


def _check_detached(given: dict[str, Any]) -> None:
    """InputError where a sweep that is handed over is asked for what only one in this process makes."""
    from store.errors import InputError

    if asked := [option for option, value in given.items() if value]:
        raise InputError(
            f"a sweep on a worker makes the edits alone, no folder, page or scores: leave out {' and '.join(asked)}; "
            "give the same without --detach once it is done, which computes no edit again"
        )


def _detach(how: str, asked: tuple[Any, ...], notes: list[str], as_json: bool) -> None:
    """Hand a run to a worker by one of `flows.remote_control`'s functions, and say where it can be seen."""
    from flows.engine import use_server
    from flows.terminal import say

    url = use_server()
    from flows import remote_control

    for note in notes:
        say(note)
    run, heard = getattr(remote_control, how)(*asked)
    for note in heard:
        say(note)
    say(f"{run.name}: {url.removesuffix('/api')}/runs/flow-run/{run.id}; tf watch, tf cancel")
    if as_json:
        print_json({**remote_control.outcome(run), "url": f"{url.removesuffix('/api')}/runs/flow-run/{run.id}"})
    else:
        print(run.id)


def _performed(name: str, plan: "Plan", output: Path | None, engine: str) -> "Result":
    """Run an edit or a preview with progress on stderr."""
    import flows.run
    from flows.terminal import Bars, say

    for note in plan.notes:
        say(note)
    with Bars() as bars:
        result: Result = getattr(flows.run, name)(plan, output, _checked_engine(engine), bars)
    for note in result.notes:
        say(note)
    return result


def _checked_engine(engine: str) -> Any:
    from flows.engine import Wanted
    from store.errors import InputError

    if engine not in get_args(Wanted):
        raise InputError(f"--engine {engine!r}: have {', '.join(get_args(Wanted))}")
    return engine


def _print_result(result: "Result", as_json: bool, **more: Any) -> None:
    """What a run gave, on stdout: one JSON object with `more` in it, or a table and the files."""
    from flows.terminal import stage_table, stdout

    if as_json:
        print_json({**result.to_json(), **more})
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
    """The `tf` command as a process of its own, which ends with it."""
    codes: list[int] = []
    atexit.register(_end, codes)  # the first that is registered is the last that is called
    try:
        dispatch()
    except SystemExit as ended:
        codes.append(ended.code)  # type: ignore[arg-type]  # `dispatch` gives no other
        if ended.code in (130, 143) and "prefect" in sys.modules:
            from flows.cancelling import leave

            leave(ended.code)
        raise


def _end(codes: list[int]) -> None:
    """End this process with the command's code, now that all who asked to be told of its end were told.

    Differs from an ordinary end: at that, Python ends the threads that nobody waits for wherever they are, and one
    that is in torch at the time, as when it loads a model that is not needed any more, takes the process with it.
    """
    logging.shutdown()
    with suppress(OSError, ValueError):  # of a stream that takes no more: the ordinary end says so
        sys.stdout.flush()
        sys.stderr.flush()
        for code in codes:
            os._exit(code)


def dispatch() -> None:
    """What `tf` is asked for in `sys.argv`; its exit code is that of the `SystemExit` it raises."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("tf: %(message)s"))
    logging.getLogger("store").addHandler(warnings)
    logging.raiseExceptions = False  # that a server which is away takes no log is not told on the terminal
    terminated: list[int] = []

    def terminate(number: int, _frame: object) -> None:
        """SIGTERM ends a command in the manner of Ctrl-C."""
        from store.errors import Terminated

        terminated.append(number)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(prog_name="tf", standalone_mode=False)
    except TyperException as error:
        raise SystemExit(_usage(error)) from None
    except (typer.Abort, KeyboardInterrupt):  # typer's own answer, and what comes before typer listens
        code = 130
    if code == 130:  # a signal outside of a command's work: nothing was said yet
        from store.errors import Terminated

        code = explained(Terminated() if terminated else KeyboardInterrupt())
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

"""The benchmark: floor, published method and ours on the same work, each piece in a process of its own.

On a CPU everything is done in two rounds, and each piece counts as in its faster one: a machine that others use wavers
by more than what is to be told apart, and a floor measured in a slow minute would flatter us.

`tf bench` calls it. What is measured goes to the file that -o names, and the ratios to the terminal.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.sizes import PROMPTS, SIZES, Size, described
from store.errors import InputError, TokenflowError

ROOT = Path(__file__).parents[1]
SCALE = (64, 512)  # frames
SCALE_STEPS = 4
ROUNDS = 2  # one where a GPU is needed: it does not waver, and is lent by the minute
MEGABYTE = 1e6

Result = dict[str, Any]
Say = Callable[[str], None]


class BenchmarkError(TokenflowError):
    """A piece of the benchmark failed."""


def run_bench(names: Sequence[str], *, scale: bool, device: str, precision: str, profile: bool, say: Say) -> Result:
    """Measure the sizes called `names`; `scale` also measures a long clip against a short one.

    raises   InputError for a size that there is not, or that needs a GPU where there is none
    """
    for name in names:
        if name not in SIZES:
            raise InputError(f"no size {name!r}; have {', '.join(SIZES)}")
        if SIZES[name].needs_gpu and device == "cpu":
            raise InputError(f"size {name} needs a GPU; run tf bench {name} --device cuda where there is one")
    result: Result = {"machine": machine(device), "sizes": {}}
    for name in names:
        rounds = 1 if SIZES[name].needs_gpu else ROUNDS
        measured, scaled = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="tf-bench-") as folder:
                bench = Bench(SIZES[name], Path(folder), device, precision, profile, say)
                measured.append(bench.measured())
                if scale and name == "pocket":
                    scaled.append(bench.scaled())
        result["sizes"][name] = summed_up(SIZES[name], measured)
        if scaled:
            result["scale"] = compared(faster(scaled))
    return result


class Bench:
    """One size being measured in one folder."""

    def __init__(self, size: Size, folder: Path, device: str, precision: str, profile: bool, say: Say) -> None:
        self.size, self.folder, self.say = size, folder, say
        self.options = ["--device", device, "--precision", precision, *(["--profile"] if profile else [])]

    def measured(self) -> Result:
        """Every piece of work on this size, once."""
        work = {"floor-prepare": self.piece("floor-prepare"), "floor-edit": self.piece("floor-edit")}
        work |= {name: self.piece(name) for name in ("prepare", "first-edit", "second-edit")}
        work["fast-edit"] = self.piece("second-edit", "--preset", "fast")
        if self.size.token_budget:
            work["prepare-drop-tokens"] = self.piece("prepare", "--drop-tokens")
        if self.size.name != "pocket":
            work |= {name: self.piece(name) for name in ("baseline", "baseline-heads")}
        measured: Result = {"work": work}
        if self.size.name == "pocket":
            measured["commands"] = self.commands()
        if self.size.needs_gpu:
            measured["field"] = self.piece("field")
        return measured

    def scaled(self) -> Result:
        """A long clip and a short one, in few steps."""
        pieces = ("prepare", "second-edit")
        return {f"{name} {frames}": self.scaled_piece(name, frames) for frames in SCALE for name in pieces}

    def scaled_piece(self, name: str, frames: int) -> Result:
        """One piece of work on so many frames."""
        return self.piece(name, "--frames", str(frames), "--steps", str(SCALE_STEPS))

    def piece(self, what: str, *more: str) -> Result:
        """One piece of work, in a process of its own."""
        self.say(f"{self.size.name}: {what} {' '.join(more)}")
        command = [sys.executable, "-m", "benchmarks.work", what, self.size.name, str(self.folder)]
        answer: Result = json.loads(output([*command, *self.options, *more]).splitlines()[-1])
        return answer

    def commands(self) -> Result:
        """Wall seconds of commands over what was just prepared, the least of three: help, plan, a no-op run."""
        clip, store = self.size.clip(self.folder), self.folder / "command-store"
        shared = [str(clip), "--prompt", PROMPTS[0], "--steps", "2", "--store", str(store)]
        run = ["run", *shared, "--engine", "direct", "-o", str(self.folder / "edit.mp4")]
        self.say(f"{self.size.name}: tf run, tf plan, tf --help")
        tf(*run)
        modules = json.loads(output([sys.executable, "-c", LISTED, *run]).splitlines()[-1])
        imports = [sys.executable, "-c", "import sys; [__import__(name) for name in sys.argv[1:]]", *modules]
        least = {
            "help": min(timed([sys.executable, "-m", "cli", "--help"]) for _ in range(3)),
            "plan": min(timed([sys.executable, "-m", "cli", "plan", *shared]) for _ in range(3)),
            "no_op": min(timed([sys.executable, "-m", "cli", *run]) for _ in range(3)),
            "imports_of_no_op": min(timed(imports) for _ in range(3)),
        }
        return {**least, "no_op_loads_model": False}


LISTED = """
import json, sys
sys.argv = ["tf", *sys.argv[1:]]
import cli
try:
    cli.dispatch()
except SystemExit as done:
    assert not done.code, done.code
assert not any(name.startswith(("diffusers", "transformers")) for name in sys.modules), "the model was loaded"
names = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
print(json.dumps(sorted(name for name in names if not name.startswith("_") and "." not in name and name != "cli")))
"""


def faster(rounds: Sequence[Result]) -> Result:
    """Piece → what it took in its faster round."""
    return {name: min((each[name] for each in rounds), key=lambda taken: taken["wall_seconds"]) for name in rounds[0]}


def summed_up(size: Size, rounds: Sequence[Result]) -> Result:
    """One size: each piece in its faster round, and their ratios."""
    work = faster([each["work"] for each in rounds])
    seconds = {name: taken["wall_seconds"] for name, taken in work.items()}
    result = {"size": described(size), "rounds": len(rounds), "work": work, "ratios": ratios(seconds)}
    if "commands" in rounds[0]:
        least = {name: min(each["commands"][name] for each in rounds) for name in rounds[0]["commands"]}
        result["commands"] = {**least, "no_op_over_imports": least["no_op"] / least["imports_of_no_op"]}
    if "field" in rounds[0]:
        result["field"] = rounds[0]["field"]
    return result


def compared(pieces: Result) -> Result:
    """A long clip against a short one: seconds per frame of every stage, and peak memory."""
    short, long = ({name.split()[0]: piece for name, piece in pieces.items() if name.endswith(f" {n}")} for n in SCALE)
    per_frame = [
        {name: seconds / frames for name, seconds in stage_seconds(clip).items()}
        for frames, clip in zip(SCALE, (short, long), strict=True)
    ]
    return {
        "frames": list(SCALE), "steps": SCALE_STEPS, "short": short, "long": long,
        "peak_memory_ratio": {name: long[name]["peak_rss_bytes"] / short[name]["peak_rss_bytes"] for name in short},
        "seconds_per_frame_ratio": {name: per_frame[1][name] / per_frame[0][name] for name in per_frame[0]},
    }  # fmt: skip


def stage_seconds(pieces: Result) -> dict[str, float]:
    """Stage → seconds of its own, also where two stages were one piece of work."""
    return {name: seconds for piece in pieces.values() for name, seconds in piece["stage_seconds"].items()}


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """What the targets are about, by name."""
    found = {
        "prepare / floor": seconds.get("prepare-drop-tokens", seconds["prepare"]) / seconds["floor-prepare"],
        "second prompt / floor": seconds["second-edit"] / seconds["floor-edit"],
        "second prompt / first run": seconds["second-edit"] / (seconds["prepare"] + seconds["first-edit"]),
        "fast / second prompt": seconds["fast-edit"] / seconds["second-edit"],
    }
    if "prepare-drop-tokens" in seconds:
        found["prepare, tokens kept / floor"] = seconds["prepare"] / seconds["floor-prepare"]
    for name, called in (("baseline", "B"), ("baseline-heads", "B′")):
        if name in seconds:
            found[f"second prompt / {called}"] = seconds["second-edit"] / seconds[name]
            found[f"fast / {called}"] = seconds["fast-edit"] / seconds[name]
    return {name: round(value, 3) for name, value in found.items()}


def tf(*arguments: str) -> str:
    """Run the command line; what it printed."""
    return output([sys.executable, "-m", "cli", *arguments])


def output(command: list[str]) -> str:
    """What a command printed; BenchmarkError with its last words where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[1:4])} failed: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout


def timed(command: list[str]) -> float:
    """Wall seconds of a command."""
    began = time.perf_counter()
    output(command)
    return round(time.perf_counter() - began, 3)


def machine(device: str) -> Result:
    """Where and with what this is measured."""
    cpus = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found: Result = {
        "cpu": cpus[0] if cpus else platform.processor(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "torch's own"), "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "diffusers", "zarr", "triton", "tokenflow")},
    }  # fmt: skip
    if device != "cpu":
        import torch

        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def lines_of(result: Result) -> list[str]:
    """The result as text: seconds of every piece, stage by stage, then the ratios."""
    lines = [", ".join(f"{name} {value}" for name, value in result["machine"].items())]
    for name, size in result["sizes"].items():
        lines += ["", f"{name:36}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'read MB':>9}{'written MB':>11}"]
        for what, taken in size["work"].items():
            lines.append(_row(what, taken))
            lines += [_row(f"  {stage}", own) for stage, own in taken.get("stages", {}).items()]
        lines += [f"{ratio:36}{value:>9.2f}" for ratio, value in size["ratios"].items()]
        for part in ("commands", "field"):
            lines += [f"{what:36}{value:>9.2f}" for what, value in size.get(part, {}).items()]
    if "scale" in result:
        scale = result["scale"]
        lines += ["", f"{scale['frames'][1]} frames against {scale['frames'][0]}, {scale['steps']} steps"]
        for what in ("peak_memory_ratio", "seconds_per_frame_ratio"):
            lines += [f"{what} {name:24}{value:>9.2f}" for name, value in scale[what].items()]
    return lines


def _row(name: str, taken: Result) -> str:
    peak = taken["gpu_peak_bytes" if "gpu_peak_bytes" in taken else "peak_rss_bytes"] / MEGABYTE
    read, written = taken["bytes_read"] / MEGABYTE, taken["bytes_written"] / MEGABYTE
    return f"{name:36}{taken['wall_seconds']:>9.2f}{taken['cpu_seconds']:>9.2f}{peak:>9.0f}{read:>9.1f}{written:>11.1f}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.is_file() else []

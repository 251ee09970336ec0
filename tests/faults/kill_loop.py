"""A real `tf run` that is ended at random moments, again and again, and must come to the same end every time.

python -m tests.faults.kill_loop FOLDER --kills 200 --seed 1 --signals KILL

This process imports everything once; each attempt is a fork of it, in which the command line's own `main` runs. After
each end the store is read by code that trusts nothing of it; then the run goes on, to be ended again or to finish.

The last line is a JSON object of what was done; the first broken promise ends it with exit 1, naming seed and attempt.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open"}
COMMITS = r"objects|keys|record\.json|runs|\.mp4|format"  # where a change makes something visible
CHANCE_TO_FINISH = 0.4  # of the run after an end; else that run is ended as well
SHORTEST = 0.2  # of the undisturbed run is what a run that goes on is thought to take at least
STRETCH = 1.1  # delays are drawn up to so many times the undisturbed run's seconds

MODES: dict[str, list[list[str]]] = {
    "kept": [["run"]],
    "fused": [["run", "--token-budget", "0"]],
    "previewed": [["preview"], ["run"]],
}


class BrokenPromiseError(Exception):
    """What must never be seen was seen."""


@dataclass
class Undisturbed:
    """What a mode gives when nothing goes wrong."""

    seconds: float
    changes: list[str]  # of the file system, in order
    digests: dict[str, str]  # key in hex → digest
    files: dict[str, str]  # name of an output → hash of what it shows


@dataclass
class Report:
    """What was done, and what was seen on the way that breaks no promise."""

    seed: int
    ended: Counter[str] = field(default_factory=Counter)  # by signal and aim
    survived: int = 0  # runs that came to their end before they were to be ended
    finished: int = 0  # runs compared with the undisturbed one
    resumed: Counter[str] = field(default_factory=Counter)  # stages that were there at the end of a disturbed run
    left: Counter[str] = field(default_factory=Counter)  # files that a finished store holds and nobody names


# processes


def small_model(folder: Path) -> Path:
    """A model of few layers: what is tried here is not its, and runs are many."""
    from tests.tiny.models import save_model

    return save_model(
        folder, vae="tiny", layers_per_block=1, block_out_channels=(16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def preload(model: Path) -> None:
    """Do once what every run does before it computes: import, and trace the model. No thread is started."""
    import torch

    from stages.backbones.layout import geometry, layout, read_configs

    import_all()
    torch.set_num_threads(1)
    geometry(read_configs(model))
    layout(read_configs(model), 32, 32)
    shorter_parts()


def import_all() -> None:
    """Import what a run imports at one time or another, for the children that are forked later."""
    import importlib

    for name in (
        "cli", "flows.run", "flows.plan", "flows.terminal", "flows.runtime", "flows.edit", "flows.prepare",
        "flows.options", "store.draft", "store.parts", "store.pandera_schemas", "filelock", "xarray", "zarr",
        "pandera.xarray", "pandera.engines.xarray_engine", "dask.array", "diffusers", "diffusers.guiders",
        "stages.backbones.stable_diffusion", "stages.backbones.families.sd", "stages.editors.pnp",
        "stages.measures.cuts", "scenedetect", "transformers.models.clip.modeling_clip", "av", "cv2", "rich.progress",
        "xarray.backends.zarr", "diffusers.models.autoencoders.autoencoder_tiny",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "diffusers.models.unets.unet_2d_condition", "diffusers.schedulers.scheduling_unipc_multistep",
    ):  # fmt: skip
        importlib.import_module(name)


def shorter_parts() -> None:
    """Several parts in every stage that has parts, without a long clip."""
    from stages import extract_tokens, invert_frames, match_tokens

    invert_frames.FRAMES_PER_PART = invert_frames.FRAMES_PER_CHECK = 4
    extract_tokens.TIMESTEPS_PER_PART = match_tokens.TIMESTEPS_PER_PART = 1


def fork(work: Callable[[], None], log: Path) -> int:
    """Do `work` in a child whose output goes to `log`.out and .err; returns its process id.

    Signals are held back until the child can take them: a Ctrl-C must not run this process's code in the child.
    """
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        return child
    code: object = 70
    try:
        for stream, number in ((".out", 1), (".err", 2)):
            opened = os.open(f"{log}{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        work()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1 if code else 0)


def wait(child: int) -> int:
    """The exit code of a child; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tf(arguments: list[str], on_change: Callable[[str], None] | None = None) -> None:
    """The command line, in this process; `on_change` is told of each change of the file system before it is made."""
    import cli

    if on_change:
        sys.addaudithook(_telling(on_change))
    sys.argv = ["tf", *arguments]
    cli.main()


def _telling(on_change: Callable[[str], None]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or given[2] & (os.O_WRONLY | os.O_RDWR)):
            names = [str(name) for name in given[:2] if isinstance(name, (str, os.PathLike))]
            on_change(f"{event} {' '.join(names)}")

    return hook


# one mode


class Trial:
    """One mode in a folder of its own: its store, its outputs, and what they must be."""

    def __init__(self, mode: str, folder: Path, clip: Path, model: Path) -> None:
        self.mode, self.folder = mode, folder
        self.store, self.out, self.log = folder / "store", folder / "out", folder / "log"
        shared = [
            str(clip), "--prompt", "a red ball", "--model", str(model), "--steps", "4", "--keyframe-interval", "3",
            "--engine", "direct", "--store", str(self.store), "--json",
        ]  # fmt: skip
        names = {"run": "edit.mp4", "preview": "edit.png"}
        self.commands = [
            [verb, *shared, "-o", str(self.out / names[verb]), *more] for verb, *more in MODES[mode]
        ]  # fmt: skip
        self.clear()
        self.undisturbed = self._undisturbed()
        self.sample = folder / "sample"  # its store, to look at
        shutil.rmtree(self.sample, ignore_errors=True)
        self.store.rename(self.sample)
        self.clear()

    def clear(self) -> None:
        """Start from nothing."""
        for folder in (self.store, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.ahead = 1.0

    def _undisturbed(self) -> Undisturbed:
        told = self.folder / "changes"
        told.unlink(missing_ok=True)

        def telling(change: str) -> None:
            if str(self.folder) in change and "log" not in change:
                os.write(file, f"{change}\n".encode())

        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        began = time.perf_counter()
        for command in self.commands:
            code = wait(fork(lambda command=command: tf(command, telling), self.log))  # type: ignore[misc]
            if code:
                raise SystemExit(f"the undisturbed run fails: {Path(f'{self.log}.err').read_text()}")
        seconds = time.perf_counter() - began
        os.close(file)
        return Undisturbed(seconds, told.read_text().splitlines(), self.whole(), self.shown())

    # one attempt

    def attempt(self, how: signal.Signals, aim: str, rng: random.Random) -> bool:
        """Run until the end, or until it is ended by `how` at a moment drawn from `aim`; True if it was ended."""
        changes = self.undisturbed.changes
        pattern = re.compile(COMMITS if aim == "commit" else ".")
        share = rng.random()  # of what is still to be done
        left = int(share * self.ahead * sum(bool(pattern.search(change)) for change in changes)) + 1
        delay = share * self.ahead * STRETCH * self.undisturbed.seconds

        def ending(change: str) -> None:
            nonlocal left
            if str(self.folder) in change and pattern.search(change.replace(str(self.folder), "")):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), how)

        def work() -> None:
            for command in self.commands:
                if command is self.commands[-1]:
                    tf(command, None if aim == "time" else ending)
                elif (code := self._inner(command, None if aim == "time" else ending)) != 0:
                    raise SystemExit(code)

        child = fork(work, self.log)
        if aim == "time":
            time.sleep(delay)
            os.kill(child, how)  # a child that has ended is not waited for yet, so its number is still its own
        ended = self._ended_as_it_should(wait(child), how)
        self.ahead = max(SHORTEST, self.ahead * (1 - share)) if ended else SHORTEST
        return ended

    def _inner(self, command: list[str], on_change: Callable[[str], None] | None) -> int:
        """A command before the last, in the same process."""
        try:
            tf(command, on_change)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def _ended_as_it_should(self, code: int, how: signal.Signals) -> bool:
        err = Path(f"{self.log}.err").read_text()
        if code == 0:
            return False
        polite = {signal.SIGINT: (130, "tf: interrupted"), signal.SIGTERM: (143, "tf: terminated")}
        if how in polite:
            expected, said = polite[how]
            if code != expected or not err.startswith(said) or err.count("\n") != 1:
                raise BrokenPromiseError(f"{how.name} ends with {code} and says {err!r}")
        elif code != -how or err:
            raise BrokenPromiseError(f"{how.name} ends with {code} and says {err!r}")
        return True

    # what is there

    def check(self) -> list[str]:
        """Read the store as it is now; returns the stages that are found. Raises BrokenPromiseError."""
        from store.records import read_record
        from store.store import Store

        store = Store(self.store)
        stages = []
        for path in self.store.glob("keys/*/[!.]*"):
            record = read_record(path)
            if record is None or self.undisturbed.digests.get(record.hex) != record.digest:
                raise BrokenPromiseError(f"{path} is not a record of the undisturbed run")
        for key, digest in self.undisturbed.digests.items():
            artifact = store.find(key)
            if artifact is None:
                continue
            if artifact.digest != digest or artifact.path != self.store / "objects" / digest:
                raise BrokenPromiseError(f"{key} is found as {artifact.path}")
            check_files(artifact.path, {name: entry.blake3 for name, entry in artifact.record.files.items()})
            stages.append(artifact.stage)
        for name, shown in self.shown().items():
            if self.undisturbed.files[name] != shown:
                raise BrokenPromiseError(f"{name} shows something else")
        return stages

    def finish(self, report: Report) -> None:
        """Run to the end undisturbed, and compare everything."""
        for command in self.commands:
            code = wait(fork(lambda command=command: tf(command), self.log))  # type: ignore[misc]
            if code:
                raise BrokenPromiseError(f"the next run ends with {code}: {Path(f'{self.log}.err').read_text()}")
        whole = self.whole()
        if whole != self.undisturbed.digests:
            other = sorted(key for key, _ in whole.items() ^ self.undisturbed.digests.items())
            raise BrokenPromiseError(f"a finished run gave other artifacts than the undisturbed one: {other}")
        if self.shown() != self.undisturbed.files:
            raise BrokenPromiseError("a finished run shows other frames than the undisturbed one")
        objects = {path.name for path in self.store.glob("objects/*")}
        if objects != set(self.undisturbed.digests.values()):
            raise BrokenPromiseError(f"objects that no record names: {objects}")
        drafts = [path for path in self.store.glob("drafts/*") if path.suffix != ".lock"]
        if any(list(path.iterdir()) for path in drafts if path.is_dir()):
            raise BrokenPromiseError(f"drafts that no run takes up: {drafts}")
        strays = [*drafts, *self.store.glob("*/.*"), *self.store.glob("*/*/.*"), *self.out.glob(".*")]
        report.left.update(f"{path.parent.name}/{path.suffix if path.name[0] == '.' else 'folder'}" for path in strays)
        report.finished += 1

    def whole(self) -> dict[str, str]:
        """Key in hex → digest of all that is committed, after comparing every file with its hash."""
        from store.records import read_record

        found = {}
        for path in sorted(self.store.glob("keys/*/[!.]*")):
            record = read_record(path)
            assert record is not None
            check_files(
                self.store / "objects" / record.digest, {name: entry.blake3 for name, entry in record.files.items()}
            )
            found[record.hex] = record.digest
        return found

    def shown(self) -> dict[str, str]:
        """Name of an output that is there → hash of its pictures, read by a process of its own."""
        found = {}
        for path in sorted(self.out.glob("[!.]*")):
            if path.suffix == ".json":
                continue
            code = wait(fork(lambda path=path: print(pictures_hash(path)), self.folder / "shown"))  # type: ignore[misc]
            if code:
                raise BrokenPromiseError(f"{path.name} cannot be read")
            found[path.name] = (self.folder / "shown.out").read_text().strip()
        return found


def check_files(folder: Path, hashes: dict[str, str]) -> None:
    """Raise BrokenPromiseError unless `folder` holds exactly these files with these hashes."""
    present = {str(path.relative_to(folder)): path for path in folder.rglob("*") if not path.is_dir()}
    if present.keys() != hashes.keys():
        raise BrokenPromiseError(f"{folder} holds other files than its record says: {present.keys() ^ hashes.keys()}")
    for name, path in present.items():
        if path.is_symlink() or blake3(path.read_bytes()).hexdigest() != hashes[name]:
            raise BrokenPromiseError(f"{path} has another hash than its record says")


def pictures_hash(path: Path) -> str:
    """blake3 of the decoded frames of a video, or of a picture's pixels."""
    import av

    hasher = blake3()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            hasher.update(frame.to_ndarray(format="rgb24").tobytes())
    return hasher.hexdigest()


# the loop


def loop(folder: Path, kills: int, seed: int, signals: list[str], modes: list[str]) -> Report:
    """End runs `kills` times; every mode, signal and aim has its turns."""
    from tests.flows.runs import small_clip

    clip, model = small_clip(folder / "clip.mp4", frames=9), small_model(folder / "model")
    preload(model)
    trials = [Trial(mode, folder / mode, clip, model) for mode in modes]
    for trial in trials:
        said = trial.undisturbed
        print(f"{trial.mode}: {said.seconds:.1f} s, {len(said.changes)} changes, {len(said.digests)} artifacts")
    rng, report = random.Random(seed), Report(seed)
    began = time.perf_counter()
    while (done := sum(report.ended.values())) < kills:
        trial = trials[report.finished % len(trials)]
        aim, how = (
            rng.choice(("time", "time", "change", "commit")),
            signal.Signals[f"SIG{signals[done % len(signals)]}"],
        )
        try:
            if trial.attempt(how, aim, rng):
                report.ended[f"{how.name} {aim}"] += 1
            else:
                report.survived += 1
            found = trial.check()
            if rng.random() < CHANCE_TO_FINISH or sum(report.ended.values()) == kills:
                report.resumed.update(found)
                trial.finish(report)
                trial.clear()
        except BrokenPromiseError as error:
            attempt = sum(report.ended.values()) + report.survived
            print(f"seed {seed}, attempt {attempt}, {trial.mode}, {how.name} at a {aim}: {error}", file=sys.stderr)
            raise SystemExit(1) from error
    print(f"{time.perf_counter() - began:.0f} s")
    return report


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signals", nargs="+", default=["KILL"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    report = loop(asked.folder.absolute(), asked.kills, asked.seed, asked.signals, asked.modes)
    print(json.dumps({name: getattr(report, name) for name in Report.__dataclass_fields__}))


if __name__ == "__main__":
    from tests import conftest as _  # noqa: F401  threads and quiet libraries, before torch is imported

    main()

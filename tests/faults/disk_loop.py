"""Runs on disks that are too small, fill up, or may not be written; in a mount namespace of their own:

unshare -m python -m tests.faults.disk_loop FOLDER

Each scenario prints one JSON object: its name, and what was broken (nothing, if all is well).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.kill_loop import BrokenPromiseError, Trial, fork, preload, small_model, tf, wait

FULL = (
    r"tf: (this run would write up to [\d.]+ \w+ to|the disk is full: .* (needs [\d.]+ \w+|does not fit) in) "
    r"(?P<store>\S+), where [\d.]+ \w+ is free; free some space[^\n]*\n"
)
ROOM = "64m"
ENDS_AT_CHANGES = 3  # how many times the disk is filled in the middle of a run


@contextmanager
def disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own at `place`."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def run(trial: Trial, before: Callable[[], None] = lambda: None, *more: str, verb: str = "") -> tuple[int, str, str]:
    """The exit code, stdout and stderr of the trial's command in a process that first does `before`."""
    asked = [*trial.commands[-1], *more] if not verb else [verb, *more]

    def work() -> None:
        before()
        tf(asked)

    code = wait(fork(work, trial.log))
    return code, Path(f"{trial.log}.out").read_text(), Path(f"{trial.log}.err").read_text()


def hits(out: str) -> set[str]:
    return {each["stage"] for each in json.loads(out)["stages"] if each["hit"]}


def expect(true: bool, what: str) -> None:
    if not true:
        raise BrokenPromiseError(what)


def refused(trial: Trial, code: int, err: str, pattern: str) -> list[str]:
    """Check a run that the disk ended: its code, its one sentence, and what it left; returns what is committed."""
    expect(code == 2, f"it ends with {code}: {err!r}")
    said = re.fullmatch(pattern, err)
    expect(said is not None, f"it says {err!r}")
    if "store" in said.groupdict():  # type: ignore[union-attr]
        expect(said["store"] == str(trial.store), f"it names another place: {err!r}")  # type: ignore[index]
    left = [path for path in trial.store.glob("drafts/*") if path.suffix != ".lock"]
    expect(not left, f"drafts are left: {[[str(f) for f in folder.rglob('*')][:8] for folder in left]} after {err!r}")
    return trial.check()


def goes_on(trial: Trial, kept: list[str]) -> None:
    """With room, the next run reuses what is kept and gives what the undisturbed one gave."""
    code, out, err = run(trial)
    expect(code == 0, f"with room it ends with {code}: {err}")
    expect(set(kept) <= hits(out), f"{set(kept) - hits(out)} was computed again")
    expect(trial.whole() == trial.undisturbed.digests, "with room it gives other artifacts")


# scenarios


def too_small(trial: Trial) -> int:
    """Disks of all sizes from none to nearly enough."""
    needed = 4096 * sum(-(-path.stat().st_size // 4096) for path in trial.sample.rglob("*") if path.is_file())
    seen = set()
    for size in ["12k", *(f"{int(needed * part) >> 10}k" for part in (0.4, 0.9))]:
        with disk(trial.store, size):
            code, _, err = run(trial)
            kept = refused(trial, code, err, FULL)
            seen.add((err.split()[1], len(kept)))
            remount(trial.store, f"size={ROOM}")
            goes_on(trial, kept)
    expect(len({word for word, _ in seen}) == 2, f"the disk was not both told too small and filled: {seen}")
    return len(seen)


def filled(trial: Trial) -> int:
    """A disk that something else fills up at a random change of a run."""
    rng, stages = random.Random(5), set()
    for _ in range(ENDS_AT_CHANGES):
        with disk(trial.store, ROOM):
            left = rng.randrange(len(trial.undisturbed.changes))
            code, _, err = run(trial, lambda left=left: fill_at(trial.store, left))  # type: ignore[misc]
            if code == 0:
                continue
            (trial.store / ".filler").unlink()
            kept = refused(trial, code, err, FULL)
            stages.add(len(kept))
            goes_on(trial, kept)
    expect(len(stages) > 1, f"the disk was always filled in the same stage: {stages}")
    return len(stages)


def fill_at(place: Path, change: int) -> None:
    """Fill the disk of `place` before its change number `change`."""
    left, filling = change, False

    def hook(event: str, given: tuple[object, ...]) -> None:
        nonlocal left, filling
        if filling or event not in ("open", "os.rename", "os.mkdir") or not str(given[0]).startswith(str(place)):
            return
        left -= 1
        if left < 0:
            filling = True
            file = os.open(place / ".filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        os.write(file, bytes(size))
                except OSError:
                    continue
            os.close(file)
            filling = False
            left = 20  # what a draft gives back is taken again

    sys.addaudithook(hook)


def file_size_limit(trial: Trial) -> int:
    """A limit on the size of one file."""
    largest = max(path.stat().st_size for path in trial.sample.rglob("*") if path.is_file())
    for limit in (2000, largest // 2):
        trial.clear()
        code, _, err = run(trial, lambda limit=limit: limit_files(limit))  # type: ignore[misc]
        expect(code == 2, f"a limit of {limit} ends with {code}: {err!r}")
        expect(err.count("\n") == 1 and "File too large" in err and str(trial.store) in err, f"it says {err!r}")
        goes_on(trial, trial.check())
    return 2


def limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def read_only(trial: Trial) -> int:
    """A store that may be read: what is there serves, the rest is refused before a model is loaded."""

    def no_model() -> None:
        import flows.runtime

        def load(*given: object) -> None:
            print("a model is loaded", file=sys.stderr)

        flows.runtime.load = load  # type: ignore[assignment]

    with disk(trial.store, ROOM):
        goes_on(trial, [])
        remount(trial.store, "ro")
        code, out, err = run(trial, no_model)
        expect((code, err) == (0, "") and len(hits(out)) == 6, f"a cached run ends with {code}: {err!r}")
        key = json.loads(out)["stages"][-1]["key"]
        clip = str(trial.out / "again.mp4")
        place = ("--store", str(trial.store))
        only_run = {"run", "--engine", "direct", "-o", str(trial.out / "edit.mp4")}
        asked = [each for each in trial.commands[-1] if each not in only_run]
        for verb, given in (("list", []), ("plan", asked), ("export", [key, "-o", clip])):
            code, _, err = run(trial, no_model, *given, *place, verb=verb)
            expect((code, err) == (0, ""), f"tf {verb} ends with {code}: {err!r}")
        code, _, err = run(trial, no_model, "--guidance-scale", "3")
        pattern = rf"tf: cannot write a draft in {re.escape(str(trial.store))} \(Read-only file system\); [^\n]*\n"
        expect(code == 2 and re.fullmatch(pattern, err) is not None, f"a new run ends with {code}: {err!r}")
    return 5


SCENARIOS = {each.__name__: each for each in (too_small, filled, file_size_limit, read_only)}


def main() -> None:
    """See the top of this file."""
    from tests.flows.runs import small_clip

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = small_model(folder / "model")
    preload(model)
    trial = Trial("kept", folder / "trial", small_clip(folder / "clip.mp4"), model)
    for name in asked.only:
        trial.clear()
        try:
            print(json.dumps({"scenario": name, "seen": SCENARIOS[name](trial), "broken": None}), flush=True)
        except BrokenPromiseError as error:
            print(json.dumps({"scenario": name, "broken": str(error)}), flush=True)


if __name__ == "__main__":
    from tests import conftest as _  # noqa: F401  threads and quiet libraries, before torch is imported

    main()

"""Several real processes at one store; run as `python -m tests.store.crowd SCENE ROOT`, answers with a JSON list.

The processes are forked before anything is read or written, so that one import serves them all.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from store.artifact import Artifact
from store.errors import StoreError
from store.store import Store
from tests.store.demo import demo_blocks, demo_key, demo_schema, demo_values, make_demo

forked = multiprocessing.get_context("fork")
SECONDS = 120.0  # for anything to happen at all
ROUNDS = int(os.environ.get("TOKENFLOW_ROUNDS", "8"))


class Heard(logging.Handler):
    """Keeps what the store warns of, and may call when it does."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.said: list[str] = []
        self.then = then

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self.then()


def compute(
    root: str, steps: int, heard: Heard, between: Callable[[int], object] = lambda part: None
) -> dict[str, Any]:  # fmt: skip
    """Have the demo of `steps`; `between` is called before each part that is computed here."""
    logging.getLogger("store").addHandler(heard)
    computed = 0
    with Store(root).draft(demo_key(steps=steps), demo_schema()) as draft:
        for part in draft.missing():
            between(computed)
            draft.write(part, demo_blocks(part))
            computed += 1
    return {"pid": os.getpid(), "computed": computed, "digest": draft.artifact.digest, "said": heard.said}


def eight_want_one(root: str, answers: Any) -> list[Any]:
    """All begin at once; whoever computes goes on only when the others wait."""
    begun, waiting = forked.Barrier(8), forked.Semaphore(0)

    def work() -> None:
        begun.wait(SECONDS)
        heard = Heard(waiting.release)
        answers.put(compute(root, 50, heard, lambda part: all_wait() if part == 0 else None))

    def all_wait() -> None:
        for _ in range(7):
            assert waiting.acquire(timeout=SECONDS)

    return [forked.Process(target=work) for _ in range(8)]


def one_of_each(root: str, answers: Any) -> list[Any]:
    """The first begins its artifact, and ends it only after the second has made another."""
    begun, made = forked.Event(), forked.Event()

    def first() -> None:
        def until_made(part: int) -> None:
            begun.set()
            assert made.wait(SECONDS), "the other artifact had to wait for this one"

        answers.put(compute(root, 50, Heard(), until_made))

    def second() -> None:
        assert begun.wait(SECONDS)
        answers.put(compute(root, 51, Heard()))
        made.set()

    return [forked.Process(target=first), forked.Process(target=second)]


def killed_holder(root: str, answers: Any) -> list[Any]:
    """The first is killed in its second part, as soon as the second process waits for it."""
    inside = forked.Event()

    def first() -> None:
        compute(root, 50, Heard(), lambda part: hang() if part == 1 else None)

    def hang() -> None:
        inside.set()
        time.sleep(SECONDS)

    holder = forked.Process(target=first)

    def second() -> None:
        assert inside.wait(SECONDS)
        heard = Heard(lambda: os.kill(holder.pid, signal.SIGKILL))  # type: ignore[arg-type]
        answers.put(compute(root, 50, heard) | {"killed": holder.pid})

    return [holder, forked.Process(target=second)]


def readers_beside_gc(root: str, answers: Any) -> list[Any]:
    """One reads under a lease, one without, while `tf gc --max-size 0` runs over and over."""
    over = forked.Event()
    expected = {
        name: np.concatenate([demo_values(name, part) for part in demo_schema().divided()])
        for name in demo_schema().variables
    }

    def is_whole(artifact: Artifact) -> bool:
        return all(np.array_equal(artifact[name][:], expected[name]) for name in expected)

    def leased() -> None:
        store, whole = Store(root), 0
        for _ in range(ROUNDS):
            with store.lease([demo_key().hex]):
                artifact = store.find(demo_key()) or make_demo(store)
                for _ in range(2):
                    whole += is_whole(artifact)
                    time.sleep(0.02)
            time.sleep(0.05)
        over.set()
        answers.put({"who": "leased", "whole": whole, "of": 2 * ROUNDS})

    def bare() -> None:
        store, whole, wrong, refused = Store(root), 0, 0, 0
        while not over.is_set():
            try:
                found = store.find(demo_key())
                if found:
                    whole, wrong = (whole + 1, wrong) if is_whole(found) else (whole, wrong + 1)
            except (StoreError, FileNotFoundError):
                refused += 1
        answers.put({"who": "bare", "whole": whole, "wrong": wrong, "refused": refused})

    def gc() -> None:
        import cli

        removed, codes = 0, set()
        sys.argv = ["tf", "gc", "--max-size", "0", "--store", root, "--json"]
        while not over.is_set():
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    cli.dispatch()
            except SystemExit as left:
                codes.add(left.code or 0)
            removed += len(json.loads(out.getvalue())["removed"])
        answers.put({"who": "gc", "removed": removed, "codes": sorted(map(str, codes))})

    return [forked.Process(target=work) for work in (leased, bare, gc)]


def main(scene: str, root: str) -> None:
    answers = forked.Queue()
    processes = globals()[scene](root, answers)
    for process in processes:
        process.start()
    expected = len(processes) - (scene == "killed_holder")
    print(json.dumps(gathered(answers, processes, expected)))
    for process in processes:
        process.join(SECONDS)


def gathered(answers: Any, processes: list[Any], expected: int) -> list[Any]:
    """What the processes answer; one that fails ends the others, and its own traceback says why."""
    until, found = time.monotonic() + SECONDS, []
    while len(found) < expected:
        with contextlib.suppress(queue.Empty):
            found.append(answers.get(timeout=0.1))
            continue
        failed = [process for process in processes if process.exitcode not in (None, 0, -signal.SIGKILL)]
        if failed or time.monotonic() > until:
            for process in processes:
                process.kill()
            sys.exit(f"{', '.join(process.name for process in failed) or 'nobody'} failed; {found} answered")
    return found


def fails(root: str, answers: Any) -> list[Any]:
    """One member fails while the other waits for it for ever."""
    return [forked.Process(target=forked.Event().wait), forked.Process(target=Store(root).unpin, args=("nothing",))]


if __name__ == "__main__":
    main(*sys.argv[1:3])

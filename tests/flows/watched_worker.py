"""Preloaded into Dask workers of tests: they write down what they compute, have no video, and die when they are told.

TOKENFLOW_TEST_LOG    the file in which each part of a stage is a line when it begins, and one when it is computed
TOKENFLOW_TEST_KILL   a file that holds a number: whoever passes so many frames first removes it and is killed
TOKENFLOW_TEST_SLOW   a file: while it is there every pass takes a second longer
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask when a worker that this module is preloaded into starts."""
    import flows.videos
    from flows.plan import STAGES
    from stages import extract_tokens, propagate_tokens

    for name, module in STAGES.items():
        module.run = _written_down(name, module.run)
    propagate_tokens.run_whole = _refused  # type: ignore[assignment]
    flows.videos.probe = _refused  # type: ignore[assignment]
    extract_tokens.SourcePass.__init__ = _source_pass(extract_tokens.SourcePass.__init__)  # type: ignore[method-assign]
    _watch_passes()


def _refused(*given: Any, **named: Any) -> Any:
    raise AssertionError("a worker has no video, and propagates from keyframes that are committed")


def _line(*words: Any) -> None:
    with Path(os.environ["TOKENFLOW_TEST_LOG"]).open("a", encoding="utf-8") as file:
        file.write(" ".join(map(str, words)) + "\n")


def _written_down(name: str, run: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    def runs(spec: Any, part: range, **given: Any) -> Iterator[Any]:
        assert name != "decode_frames", "a worker has no video"
        _line("begin", name, part.start, os.getpid())
        yield from run(spec, part, **given)
        _line("computed", name, part.start, os.getpid())

    return runs


def _source_pass(init: Callable[..., None]) -> Callable[..., None]:
    def inits(source: Any, *given: Any, **named: Any) -> None:
        _line("begin", "source_pass", -1, os.getpid())
        init(source, *given, **named)

    return inits


def _watch_passes() -> None:
    from stages.backbones.stable_diffusion import StableDiffusion

    predict, passed = StableDiffusion.predict_noise, 0

    def predicts(backbone: Any, latents: Any, *given: Any) -> Any:
        nonlocal passed
        passed += len(latents)
        if Path(os.environ["TOKENFLOW_TEST_SLOW"]).exists():
            time.sleep(1)
        kill = Path(os.environ["TOKENFLOW_TEST_KILL"])
        try:
            if passed >= int(kill.read_text()):
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        except (FileNotFoundError, ValueError):
            pass
        return predict(backbone, latents, *given)

    StableDiffusion.predict_noise = predicts  # type: ignore[method-assign, assignment]

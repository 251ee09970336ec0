"""A run outlives the worker that started it: that nobody reads what it prints any more is no reason to end."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from functools import partial
from typing import Any


def outlive_readers() -> None:
    """Have log lines go nowhere once nobody reads them.

    Differs from rich, by which Prefect logs: it ends the process at the first line after the worker was killed.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in [each for logger in loggers if isinstance(logger, logging.Logger) for each in logger.handlers]:
        console: Any = getattr(handler, "console", None)
        if hasattr(console, "on_broken_pipe"):
            console.on_broken_pipe = partial(_fall_silent, console)


def _fall_silent(console: Any) -> None:
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

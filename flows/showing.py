"""How far a run has come, as Prefect shows it: a progress artifact per stage, and lines in the run's log.

The work never waits for the server: what is newest is sent by a thread of its own, and a server that is away is told
later or never.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import CancelledRun, FailedRun

from flows.plan import Node
from flows.tasks import Progress, Session

SECONDS_BETWEEN_SIGHTS = 2.0  # of the artifact
SECONDS_BETWEEN_LINES = 10.0  # in the log


class Shown:
    """Progress that Prefect shows, told to `also` as well."""

    def __init__(self, video: str, also: Progress) -> None:
        self.video, self.also, self.log = video, also, get_run_logger()
        self._over = threading.Event()
        self._mutex = threading.Lock()
        self._stage: _Stage | None = None
        context = copy_context()  # the thread is to know which run this is
        self._thread = threading.Thread(target=context.run, args=(self._show,), name="show progress", daemon=True)
        self._thread.start()

    def begin(self, node: Node, total: int) -> None:
        """A stage starts."""
        self.also.begin(node, total)
        with self._mutex:
            self._stage = _Stage(node, self.video, max(1, total))

    def advance(self, units: int) -> None:
        """So many units more are done; says so in the log at a sane rate."""
        self.also.advance(units)
        with self._mutex:
            if self._stage is None:
                return
            self._stage.done += units
            line = self._stage.line()
        if line:
            self.log.info(line)

    def end(self) -> None:
        """The stage is over."""
        self.also.end()
        with self._mutex:
            stage, self._stage = self._stage, None
        if stage is not None:
            self.log.info("%s: over after %.1f s", stage.title, time.monotonic() - stage.began)
            stage.is_over = True
            if stage.artifact is not None:
                self._send(stage)

    def note(self, sentence: str) -> None:
        """Something that the user should hear."""
        self.also.note(sentence)
        self.log.info(sentence)

    def close(self) -> None:
        """Nothing more is shown."""
        self._over.set()

    def _show(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_SIGHTS):
            with self._mutex:
                stage = self._stage
            if stage is not None and stage.done != stage.sent:
                self._send(stage)

    def _send(self, stage: _Stage) -> None:
        stage.sent = stage.done
        with suppress(Exception), stage.sending:  # what is not shown fails no run
            stage.show()


class _Stage:
    """One stage under way: units of work done, and what was last said of it."""

    def __init__(self, node: Node, video: str, total: int) -> None:
        self.title = stage_title(node)
        name = re.sub(r"[^a-z0-9]+", "-", f"{video} {self.title}".lower()).strip("-")
        self.key = f"progress-{name[:100].strip('-')}"
        self.total, self.done, self.sent, self.is_over = total, 0, 0, False
        self.began = self.said = time.monotonic()
        self.said_share = 0.0
        self.artifact: UUID | None = None
        self.sending = threading.Lock()

    @property
    def share(self) -> float:
        return 1.0 if self.is_over else min(1.0, self.done / self.total)

    def words(self) -> str:
        """How far, and how long it will take."""
        spent = time.monotonic() - self.began
        if self.is_over:
            return f"{self.title} · over after {spent:.0f} s"
        left = f"about {spent / self.share * (1 - self.share):.0f} s left" if self.share else "just begun"
        return f"{self.title} · {min(self.done, self.total)} of {self.total} · {left}"

    def line(self) -> str | None:
        """A line for the log, when it is time for one."""
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES or self.share - self.said_share < 0.1:
            return None
        self.said, self.said_share = now, self.share
        return self.words()

    def show(self) -> None:
        """Make the artifact, or bring it up to date."""
        percent = round(100 * self.share, 1)
        if self.artifact is None:
            made: Any = create_progress_artifact(percent, key=self.key, description=self.words())
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, progress=percent, description=self.words())


def stage_title(node: Node) -> str:
    """A stage in people's words: "edit keyframes · 'a marble statue'"."""
    words = node.stage.replace("_", " ")
    return words if node.prompt is None else f"{words} · '{node.prompt}'"


@contextmanager
def shown(session: Session) -> Iterator[None]:
    """What the session's progress is told, Prefect shows as well until the block ends."""
    before = session.progress
    showing = Shown(session.plan.config.video.stem, before)
    session.progress = showing
    try:
        yield
    finally:
        session.progress = before
        showing.close()


class _Sentence(logging.Filter):
    """A run that ended with a sentence is logged with it, not with the traceback of Prefect's own exception."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, FailedRun | CancelledRun):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        return True


_sentence = _Sentence()


def log_sentences() -> None:
    """From now on the run's log has no traceback of a run that ended Failed or Cancelled as it should."""
    logging.getLogger("prefect.flow_runs").addFilter(_sentence)  # once, however often it is said


class _Forwarding(logging.Handler):
    def __init__(self, to: Any) -> None:
        super().__init__(logging.INFO)
        self.to = to

    def emit(self, record: logging.LogRecord) -> None:
        self.to.log(record.levelno, record.getMessage())


@contextmanager
def store_heard() -> Iterator[None]:
    """What the store has to say, such as whom it waits for, goes to the run's log until the block ends."""
    handler, logger = _Forwarding(get_run_logger()), logging.getLogger("store")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)

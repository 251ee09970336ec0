"""How far a run has come, as Prefect shows it: a progress artifact per stage, and lines in the run's log.

The work never waits for the server: what is newest is sent by a thread of its own, and a server that is away is told
later or never.
"""

from __future__ import annotations

import logging
import os
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

from flows.plan import Node, Plan
from flows.tasks import Progress, Session
from store.errors import TokenflowError

SECONDS_BETWEEN_SIGHTS = 2.0  # of an artifact: so many seconds for each thing that is sent
SECONDS_BETWEEN_LINES = 10.0  # in the log
SHARE_BETWEEN_LINES = 0.1
SECONDS_TO_PART = 3.0  # that the end of a run waits for what is still to be sent


class Shown:
    """Progress that Prefect shows, told to `also` as well."""

    def __init__(self, plan: Plan, also: Progress) -> None:
        self.plan, self.also, self.log = plan, also, get_run_logger()
        self._over = threading.Event()
        self._mutex = threading.Lock()
        self._now: Sight | None = None
        self._ended: list[Sight] = []  # whose end is still to be shown
        context = copy_context()  # the thread is to know which run this is
        self._thread = threading.Thread(target=context.run, args=(self._show,), name="show progress", daemon=True)
        self._thread.start()

    def begin(self, node: Node, total: int, done: int = 0) -> None:
        """A stage starts, with `total` units of work ahead."""
        self.also.begin(node, total, done)
        sight = Sight(node, self.plan, total, done)
        with self._mutex:
            self._now = sight
        self.log.info(sight.words())

    def advance(self, units: int) -> None:
        """So many units more are done; says so in the log at a sane rate."""
        self.also.advance(units)
        sight = self._now
        if sight is not None:
            sight.done += units
            if line := sight.line():
                self.log.info(line)

    def end(self, finished: bool = True) -> None:
        """The stage is over."""
        self.also.end(finished)
        with self._mutex:
            sight, self._now = self._now, None
            if sight is not None:
                sight.end(finished)
                self._ended.append(sight)
        if sight is not None:
            self.log.info(sight.words())

    def note(self, sentence: str) -> None:
        """Something that the user should hear."""
        self.also.note(sentence)
        self.log.info(sentence)

    def close(self) -> None:
        """Nothing more is shown, but for what is still to be sent; a server that does not answer is not waited for."""
        self._over.set()
        self._thread.join(SECONDS_TO_PART)

    def _show(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_SIGHTS):
            self._send_one()
        while self._send_one():
            pass

    def _send_one(self) -> bool:
        """Send what is most due; whether there was something."""
        with self._mutex:
            self._ended = [sight for sight in self._ended if sight.artifact]  # what was short is never shown
            sight = self._ended.pop(0) if self._ended else self._now
        if sight is None or not sight.due():
            return False
        with suppress(Exception):  # what is not shown fails no run
            sight.show()
        return True


class Sight:
    """One stage as it is shown: what it counts, how much of it is done, and what was last said of it."""

    def __init__(self, node: Node, plan: Plan, ahead: int, done: int = 0) -> None:
        self.title = stage_title(node)
        self.key = progress_key(node.stage, plan.config.video.stem)
        self.count, self.unit = counted_in(node, plan)
        self.total, self.done, self.done_before = max(1, ahead + done), done, done
        self.began = self.said = time.monotonic()
        self.seconds: float | None = None  # that it took, once it is over
        self.finished = False
        self.said_share = self.share
        self.artifact: UUID | None = None
        self._shown: tuple[int, bool] | None = None  # what was done when it was last shown, and whether it was over

    @property
    def share(self) -> float:
        """Of the stage that is done, between 0 and 1."""
        return 1.0 if self.finished else max(0.0, min(1.0, self.done / self.total))

    def end(self, finished: bool) -> None:
        """The stage is over."""
        self.seconds, self.finished = time.monotonic() - self.began, finished

    def words(self) -> str:
        """How far it is, and how long that took or will take."""
        counted = f"{int(self.share * self.count)} of {self.count} {self.unit}"
        if self.seconds is not None:
            return (
                f"{self.title} · {counted} · {'done in' if self.finished else 'stopped after'} {lasting(self.seconds)}"
            )
        left = self._seconds_left()
        return f"{self.title} · {counted}" + (f" · {lasting(left, 0)} left" if left is not None else "")

    def _seconds_left(self) -> float | None:
        """As long as at the speed so far; what interrupted runs have done says nothing about it."""
        came = self.done - self.done_before
        return (time.monotonic() - self.began) * (1 - self.share) * self.total / came if came > 0 else None

    def line(self) -> str | None:
        """A line for the log, when it is time for one."""
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES or self.share - self.said_share < SHARE_BETWEEN_LINES:
            return None
        self.said, self.said_share = now, self.share
        return self.words()

    def due(self) -> bool:
        """Whether there is something new to show; a stage that is over at once is never shown."""
        return self._shown != self._state() and time.monotonic() - self.began >= SECONDS_BETWEEN_SIGHTS

    def show(self) -> None:
        """Make the artifact, or bring it up to date."""
        self._shown = self._state()  # before it is sent: what does not arrive is not sent again
        percent = round(100 * self.share, 1)
        if self.artifact is None:
            made: Any = create_progress_artifact(percent, key=self.key, description=self.words())
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, progress=percent, description=self.words())

    def _state(self) -> tuple[int, bool]:
        return self.done, self.seconds is not None


def stage_title(node: Node) -> str:
    """A stage in people's words: "edit keyframes · 'a marble statue'"."""
    words = node.stage.replace("_", " ")
    return words if node.prompt is None else f"{words} · '{node.prompt}'"


def progress_key(stage: str, video: str) -> str:
    """The name under which Prefect keeps how far a video's stage came: lower case, digits, dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{stage} {video}".lower()).strip("-")
    return f"progress-{name[:100].strip('-')}"


def counted_in(node: Node, plan: Plan) -> tuple[int, str]:
    """What people count a stage in, and how many of them it has: frames that are decoded, or steps."""
    if node.stage in ("decode_frames", "control_frames"):
        return plan.frames, "frames"
    if node.stage == "invert_frames":
        return int(node.spec.num_inversion_steps) * len(plan.schema(node).divided()), "steps"
    return len(plan.timesteps), "steps"


def lasting(seconds: float, digits: int = 1) -> str:
    """A length of time as people say it: 0.4 s (with `digits` below ten), 12 s, 7 min, 1 h 5 min."""
    if seconds < 90:
        return f"{seconds:.{digits if seconds < 9.95 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def shown(session: Session) -> Iterator[None]:
    """What the session's progress is told, Prefect shows as well until the block ends."""
    before = session.progress
    showing = Shown(session.plan, before)
    session.progress = showing
    try:
        yield
    finally:
        session.progress = before
        showing.close()


def sentence_of(error: BaseException) -> str:
    """What is said of an error that ended a run or a part of it, in one sentence."""
    sentence = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU's memory is full ({sentence.split('. ')[0][:200]})"
    return sentence if isinstance(error, TokenflowError) else f"unexpected {type(error).__name__}: {sentence}"


def log_cause(error: BaseException) -> None:
    """Have the log say where an error came from that nobody expected; where TOKENFLOW_DEBUG is set, any error."""
    if not isinstance(error, TokenflowError) or os.environ.get("TOKENFLOW_DEBUG"):
        get_run_logger().error("where it came from", exc_info=error)


class _Sentence(logging.Filter):
    """What ended with a sentence is logged with it, not with the traceback of Prefect's own exception, or of none."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, FailedRun | CancelledRun):
            record.msg, record.args, record.exc_info, record.exc_text = str(error), (), None, None
        elif record.exc_info and error is None:
            record.exc_info = None
        return True


_sentence = _Sentence()


def log_sentences() -> None:
    """From now on the run's log has no traceback of what ended Failed or Cancelled as it should."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_sentence)  # once, however often it is said


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

"""A run that Prefect shows as one to be cancelled is interrupted, as by Ctrl-C: Prefect tells only runs it started."""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from types import FrameType
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.engine import SECONDS_TO_ANSWER, answers, loaded
from store.errors import Terminated

SECONDS_BETWEEN_LOOKS = 3  # at whether the run is to be cancelled
SECONDS_TO_LOG = 5  # that a signal waits for a line of the log at most
SECONDS_TO_LEAVE = 30  # that the end of an interrupted command may take
LOGGING = logging.Logger.handle.__code__.co_filename

Handler = Callable[[int, FrameType | None], object]


def _interrupt_main() -> None:
    """Ctrl-C for the main thread; as a real signal, where there are any, it ends a blocking call too."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.pthread_kill(main, signal.SIGUSR1 if ignored else signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextmanager
def heard_in_background() -> Iterator[None]:
    """Where Ctrl-C is ignored, as in a job that a shell put in the background, SIGUSR1 interrupts instead.

    SIGTERM interrupts too, in a run that no worker started: Prefect would take it for a crash.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    with (
        _after_logging() as after_logging,
        _handling("SIGINT", after_logging(interrupt) if interrupt is signal.default_int_handler else None),
        _handling("SIGUSR1", after_logging(signal.default_int_handler) if interrupt == signal.SIG_IGN else None),
        _handling("SIGTERM", None if _is_served() else after_logging(terminated)),
    ):
        yield


@contextmanager
def _after_logging() -> Iterator[Callable[[Handler], Handler]]:
    """Makes of a signal's handler one that waits until the main thread is through with a line of its log.

    What a handler raises between a lock's `acquire` and the `try` that releases it leaves the lock held. `logging` has
    such places, and its locks are Prefect's threads' too: the end of the process would wait for these forever.
    """
    again: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # a handler may put into it at any moment

    def repeat() -> None:
        while (number := again.get()) is not None:
            time.sleep(0.01)
            if signal.getsignal(number) != signal.SIG_DFL:  # the run is over meanwhile, and the signal would kill
                signal.pthread_kill(threading.main_thread().ident or 0, number)

    def waiting(handler: Handler) -> Handler:
        first: list[float] = []

        def handle(number: int, frame: FrameType | None) -> None:
            first.append(time.monotonic())
            if _is_logging(frame) and first[-1] - first[0] < SECONDS_TO_LOG:
                again.put(number)
            else:
                first.clear()
                handler(number, frame)

        return handle

    if hasattr(signal, "pthread_kill"):
        threading.Thread(target=repeat, name="repeat signals", daemon=True).start()
        try:
            yield waiting
        finally:
            again.put(None)
    else:
        yield lambda handler: handler


def _is_logging(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != LOGGING:
        frame = frame.f_back
    return frame is not None


def terminated(*_signal: object) -> None:
    """What SIGTERM does: it ends a run as Ctrl-C does."""
    raise Terminated


def _is_served() -> bool:
    """Whether a worker started this process for the run, and will tell it by SIGTERM to stop."""
    return "PREFECT__FLOW_RUN_ID" in os.environ


@contextmanager
def _handling(name: str, handler: Handler | None) -> Iterator[None]:
    """A signal has this handler until the block ends; none, and on another thread than the main one: no change."""
    number = getattr(signal, name, None)
    if handler is None or number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def cancellable() -> Iterator[None]:
    """Interrupt the main thread when the flow run is to be cancelled: Prefect tells only runs that it started.

    A run that it did start is looked after as well, since the worker that should tell it may be dead; and the run that
    it is a part of.
    """
    runs = [UUID(str(run)) for run in (flow_run.id, flow_run.parent_flow_run_id) if run]
    ended, deciding = threading.Event(), threading.Lock()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            if any(map(_is_to_stop, runs)):
                with deciding:
                    if not ended.is_set():
                        _interrupt_main()
                return

    context = copy_context()  # the thread is to see the same Prefect settings
    threading.Thread(target=context.run, args=(look,), name="watch for cancellation", daemon=True).start()
    try:
        yield
    finally:
        with deciding:
            ended.set()


def impatient() -> AbstractContextManager[Any]:
    """Who presses Ctrl-C waits for no server that is away: Prefect is told within seconds, or not at all."""
    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0 if _server_is_away() else 2})


def leave(code: int) -> None:
    """End this process with `code`: now, where its end would wait for a server that is away, else soon in any case.

    Differs from an ordinary end: at that, Prefect tries for ten seconds to send each event of the run once more, and
    waits for its threads, whatever an interrupt has left them in; and a model that still loads is waited for.
    """
    atexit.unregister(loaded)
    if _server_is_away():
        _exit(code)
    ending = threading.Timer(SECONDS_TO_LEAVE, _exit, [code])
    ending.daemon = True
    ending.start()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _server_is_away() -> bool:
    """Whether there is a server that this process is to tell things, and it does not answer."""
    url = PREFECT_API_URL.value()
    return url is not None and not answers(url)


def _is_to_stop(run_id: UUID) -> bool:
    """Whether somebody cancels the run, or has declared it cancelled; a server that is away cancels nothing."""
    asked = {"timeout": SECONDS_TO_ANSWER}
    with (
        suppress(Exception),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),  # the next look comes anyway
        get_client(sync_client=True, httpx_settings=asked) as client,
    ):
        state = client.read_flow_run(run_id).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
    return False

"""A run that Prefect shows as one to be cancelled is interrupted, as by Ctrl-C: Prefect tells only runs it started."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

SECONDS_BETWEEN_LOOKS = 3  # at whether the run is to be cancelled


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
    """Where Ctrl-C is ignored, as in a job that a shell put in the background, SIGUSR1 interrupts instead."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def cancellable() -> Iterator[None]:
    """Interrupt the main thread when the flow run is to be cancelled: Prefect tells only runs that it started."""
    run_id, ended, deciding = UUID(str(flow_run.id)), threading.Event(), threading.Lock()

    def look() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                with suppress(Exception):  # a server that is away for a while cancels nothing
                    state = client.read_flow_run(run_id).state
                    if state is not None and state.type == StateType.CANCELLING:
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

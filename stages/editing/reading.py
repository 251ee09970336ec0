"""What an edit reads of its source, one piece ahead of the computing: the disk works while the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Value = TypeVar("Value")


def read_ahead(jobs: Iterable[Job], read: Callable[[Job], Value]) -> Iterator[tuple[Job, Value]]:
    """Each job with what `read` gives for it, in order; the next one is being read while this one is worked on.

    Whoever stops early waits for no thread: what ends the generator may be the garbage collector, anywhere, within
    locks of `threading` itself that joining a thread would take.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
    try:
        waiting = None
        for job in jobs:
            following = (job, reader.submit(read, job))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
    finally:
        reader.shutdown(wait=False, cancel_futures=True)

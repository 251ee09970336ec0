"""Reading ahead: in order, a piece ahead, and nobody waits for a reader who is not needed any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from stages.editing.reading import read_ahead
from store.verify import in_parallel


def test_the_next_piece_is_read_while_one_is_worked_on() -> None:
    begun = [threading.Event() for _ in range(3)]

    def read(job: int) -> int:
        begun[job].set()
        return 10 * job

    reading = read_ahead(range(3), read)
    assert next(reading) == (0, 0)
    assert begun[1].wait(60)
    assert list(reading) == [(1, 10), (2, 20)]


@pytest.mark.parametrize(
    "ahead", [read_ahead, lambda jobs, read: in_parallel(read, jobs)], ids=["read_ahead", "in_parallel"]
)
def test_whoever_stops_early_waits_for_no_thread(
    ahead: Callable[[Iterable[int], Callable[[int], Any]], Iterator[tuple[int, Any]]],
) -> None:
    """The garbage collector does, sometimes while a thread begins: joining one then waits for itself."""
    go_on, over = threading.Event(), list[int]()

    def read(job: int) -> None:
        if job > 0:
            go_on.wait(5)
            over.append(job)

    reading = ahead(range(1000), read)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert over == []
    go_on.set()

"""On the path of a desk's processes: one stands still, without work, where a test holds it (`AtDesk.holding`).

Each file in the folder TOKENFLOW_TEST_HOLDS is a regular expression. Before the main thread changes a draft whose path
one of them matches, it waits until that file is gone; signals reach it meanwhile.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

HOLDS = os.environ.get("TOKENFLOW_TEST_HOLDS")


def wait(event: str, given: tuple[object, ...]) -> None:
    if event in ("open", "os.mkdir", "os.rename") and threading.current_thread() is threading.main_thread():
        path = str(given[0])
        while "/drafts/" in path and is_held(path):
            time.sleep(0.05)


def is_held(path: str) -> bool:
    try:
        return any(re.search(hold.read_text(), path) for hold in Path(HOLDS or "").iterdir())
    except FileNotFoundError:  # let go in this moment; what else holds is seen at the next look
        return True


if HOLDS:
    sys.addaudithook(wait)

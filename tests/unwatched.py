"""For work that is measured, or is not the gateway's: coverage would make it take several times as
long.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwatched() -> Iterator[None]:
    """Takes a tracer away for a while, from this thread and from those that are started in it."""
    here, started = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(started)
        sys.settrace(here)

"""How a signal ends a run: after the step that is under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether a signal has asked the run to stop."""

    requested = False


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a request; each acts as usual the second time.

    One of each does not count as twice: torchrun answers Ctrl-C by sending SIGTERM as well.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _) -> None:
        stop.requested = True
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

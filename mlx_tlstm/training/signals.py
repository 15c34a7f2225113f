"""Stop signals (Ctrl-C, SIGTERM, SIGHUP) that take effect between two steps, not within one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: What a scheduler, a shell or a terminal that is closed asks a program to end with, and how a
#: message says so.
STOP_WORDS = {
    signal.SIGINT: "Interrupted",
    signal.SIGTERM: "Terminated",
    signal.SIGHUP: "Terminal closed",
}


def stop_signals() -> list[signal.Signals]:
    """The signals that end this process; under ``nohup`` a closed terminal's is not one of them."""
    # The other two are handled even if ignored: shells ignore Ctrl-C for jobs in the background,
    # and launch.py both for what it starts.
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_WORDS if number != signal.SIGHUP or not nohup]


class StopRequested(KeyboardInterrupt):
    """Raised after a signal asked the run to stop, at the next point where it can be left.

    Attributes:
        signal_number: The signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Handled:
    """A context in which signals have another handler; those from before come back at its end.

    Args:
        handler: As of ``signal.signal``.
        numbers: The signals.
    """

    def __init__(self, handler: Any, numbers: Iterable[int]) -> None:
        self._handler, self._numbers = handler, numbers
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._handler)

    def restore(self, *_: object) -> None:
        """Put the handlers from before back already."""
        for number, handler in self._previous.items():
            # None: the handler before was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    __exit__ = restore


@contextlib.contextmanager
def deferred_stop(
    elsewhere: Callable[[], bool] = lambda: False,
) -> Iterator[Callable[[], None]]:
    """Remember a stop signal, and let the caller choose when to stop.

    The context yields a function; the first call of it after a signal raises
    :class:`StopRequested`. A second signal is not held back: the handlers from before take it. A
    second SIGHUP does not count, as a shell and the system may both send one when a terminal is
    closed. Outside the main thread Python delivers no signals, and nothing changes. When
    ``elsewhere`` returns True, another process was asked to stop, which counts as a SIGTERM here.
    """
    received: list[int] = []
    numbers = stop_signals()

    def hold(signal_number: int, frame: object) -> None:
        received.append(signal_number)
        handled.restore()
        if signal.SIGHUP in numbers:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def check() -> None:
        if received:
            raise StopRequested(received[0])
        if elsewhere():
            raise StopRequested(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    handled = Handled(hold, numbers)
    with handled:
        yield check

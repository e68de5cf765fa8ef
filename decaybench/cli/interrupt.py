"""Ends the process soon after Ctrl-C, although Python acts on it only between two operations."""

import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from decaybench.console import INTERRUPTED, say
from decaybench.registry.user_code import EXIT

GRACE_SECONDS = 1.0  # seconds that an operation under way has to end by itself


class InterruptHandler:
    """A context in which the process ends within a second of Ctrl-C, whatever it is doing.

    Nothing is lost by it: a record is written to a temporary name and renamed.
    """

    def __init__(self, farewell: Callable[[], str]) -> None:
        self._farewell = farewell
        self._handled = threading.Event()
        self._ours, self._theirs = socket.socketpair()

    def __enter__(self) -> Self:
        self._theirs.setblocking(False)
        self._before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handled.set()
        signal.set_wakeup_fd(self._before)
        self._theirs.close()

    def _watch(self) -> None:
        while number := self._ours.recv(1):
            if number[0] == signal.SIGINT and not self._handled.wait(GRACE_SECONDS):
                say(self._farewell())
                EXIT(INTERRUPTED)
        self._ours.close()

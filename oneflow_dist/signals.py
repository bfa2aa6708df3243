"""Signals that ask a run to stop: heard from its first instant on, by a thread, whatever the process is busy with."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time

from oneflow_dist.verdict import tell

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PASSED_ON_SECONDS = 1.0  # a launcher passes on what its processes have got themselves: that is no second wish
PR_SET_PDEATHSIG = 1  # of prctl(2)


class StopSignals:
    """What a process has been asked, and what that means where it stands.

    Before the loop it ends at once, as there is nothing to save. In the loop it is noted, and all ranks stop after the
    step that they are in. The same signal again ends the process at once.
    """

    def __init__(self) -> None:
        self.name = ""  # of the first that came
        self._times: dict[int, float] = {}
        self._is_looping = self._is_over = False

    def listen(self) -> None:
        """Hear them from now on; called once, by the main thread."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        # Python runs handlers between two steps of the main thread, which may be in a collective for minutes; the
        # number of the signal is written to this socket at once.
        signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._hear, args=(ours,), daemon=True).start()
        if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun: without it nobody would end or restart us
            end_with_parent(signal.SIGTERM)

    def begin(self) -> None:
        """The loop begins: whoever asks from now on gets a checkpoint."""
        self._is_looping = True

    def end(self) -> None:
        """The loop has ended, and the process soon will."""
        self._is_over = True

    def _hear(self, ours: socket.socket) -> None:
        while numbers := ours.recv(1):
            if numbers[0] in STOP_SIGNALS:
                self._note(signal.Signals(numbers[0]))

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        is_again = now - self._times.setdefault(number, now) > PASSED_ON_SECONDS
        if is_again:
            _leave(f"ended at once by a second {number.name}; what was saved before is kept", number)
        if self._is_over or self.name:
            return
        if not self._is_looping:
            _leave(f"stopped by {number.name} before its first step; nothing to save", number)
        self.name = number.name
        if os.environ.get("RANK", "0") == "0":
            _say(f"{number.name}: stopping after this step; the same signal again ends the run at once")


def ignore_stop_signals() -> None:
    """In a process that works for another, and ends with it alone; it was forked while they were blocked."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    end_with_parent(signal.SIGKILL)


def end_with_parent(number: signal.Signals) -> None:
    """Get this signal when the process that started this one ends, however it does."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended just before
        os.kill(os.getpid(), number)


def _leave(message: str, number: signal.Signals) -> None:
    _say(message)
    tell("stopped", message)
    os._exit(128 + number)


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"\n{message}\n" if rank == "0" else f"\nrank {rank}: {message}\n")  # a progress bar may be open
    sys.stderr.flush()

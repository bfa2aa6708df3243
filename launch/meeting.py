"""Where ranks wait for each other before they can send messages: who does not come is named."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from oneflow_dist.guard.watchdog import name_ranks

POLL_SECONDS = 0.1
SPEAK_SECONDS = 20.0  # for the rank that speaks, before torchrun ends it because another has ended


class Meeting:
    """The ranks of a job in the store of torchrun; a process without torchrun meets itself.

    Args:
        node: the name of this rank's node.
        blame: called by one rank when others do not come, with their nodes and what is wrong with those.
    """

    def __init__(self, node: str, blame: Callable[[Sequence[str], str], None]):
        self._blame = blame
        self.store: dist.Store = dist.HashStore()
        self.rank, self.world_size = 0, 1
        if "WORLD_SIZE" in os.environ:
            self.store, self.rank, self.world_size = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
        self.store.set(f"node {self.rank}", node)

    def say(self, key: str, value: str) -> str:
        """What rank 0 says, on all ranks."""
        if self.rank == 0:
            self.store.set(key, value)
        return self.store.get(key).decode()

    def wait(self, phase: str, seconds: float) -> None:
        """Until all ranks have come here; if some have not after so long, the program ends with code 3."""
        with suppress(dist.DistError):  # the store goes with the rank that has spoken, or with all of its node
            if self._have_all_come(phase, seconds):
                return
            self._let_one_speak(phase, seconds)
        os._exit(3)

    def _have_all_come(self, phase: str, seconds: float) -> bool:
        self.store.set(f"{phase} {self.rank}", "")
        if self.store.add(f"{phase} count", 1) == self.world_size:
            self.store.set(f"{phase} all", "")
        return self._is_set(f"{phase} all", seconds)

    def _let_one_speak(self, phase: str, seconds: float) -> None:
        if self.store.add("speaker", 1) == 1:
            missing = [rank for rank in range(self.world_size) if not self.store.check([f"{phase} {rank}"])]
            nodes = [self.store.get(f"node {rank}").decode() for rank in missing if self.store.check([f"node {rank}"])]
            text = f"{name_ranks(missing)} not through with {phase} after {seconds:.0f} s"
            advice = "it hangs, as on a dead disk or GPU (state D in ps), or never came up (see the output of its node)"
            self._blame(list(dict.fromkeys(nodes)), f"{text}; {advice}")
            sys.stdout.flush()
            self.store.set("said", "")
        self._is_set("said", SPEAK_SECONDS)

    def _is_set(self, key: str, seconds: float) -> bool:
        """Whether it is within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.store.check([key]):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

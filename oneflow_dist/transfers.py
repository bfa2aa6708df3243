"""Between host and device, while both go on: packs there, numbers back, and when the device did what."""

from __future__ import annotations

import time

import torch
from jaxtyping import Shaped
from torch import Tensor

from oneflow_dist.containers import PackedBatch


class ToHost:
    """A tensor on its way to the host: nothing waits for it until it is asked for."""

    def __init__(self, x: Tensor):
        self._there = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
        self._there.copy_(x, non_blocking=True)
        self._arrival = torch.cuda.current_stream().record_event() if x.is_cuda else None

    def wait(self) -> Shaped[Tensor, "*shape"]:
        """The tensor in host memory, when it has come."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._there


class Moment:
    """A point in the work of a device, which it may not have reached yet."""

    def __init__(self, device: torch.device):
        self._event, self._time = None, time.perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def seconds_since(self, earlier: Moment) -> float:
        """Of the device, which must have passed both; on a CPU, of the host."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return earlier._event.elapsed_time(self._event) / 1e3


class Uploads:
    """The way of packs to a device: from pinned memory, beside what it computes.

    The host is about a step ahead of the device, so a pack is there before it is needed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, batch: PackedBatch) -> PackedBatch:
        """The same batch on the device."""
        if self._stream is None:
            return batch.to(self.device)
        now = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            there = batch.pinned().to(self.device)
        now.wait_stream(self._stream)
        for tensor in there.tensors():
            tensor.record_stream(now)  # it was made on another stream, which must not reuse its memory too early
        return there

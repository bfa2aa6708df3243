"""AdamW, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from oneflow_dist.config import OptimConfig
from oneflow_dist.model.tensor_axis import local_part
from oneflow_dist.parallel.sharding import reshard


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weight decay acts on matrices, not on norms and biases."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """The lr of a step (the first is 1): linear warmup, then constant or a half cosine to `final_lr_fraction`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same lr for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip_gradients(model: nn.Module, max_norm: float) -> Float32[Tensor, ""]:
    """Scale gradients so that their norm over all parameters and ranks is at most `max_norm`; returns it unclipped.

    Does not wait for the device. Where the norm is not finite, neither are the gradients afterwards.
    """
    is_real = not any(p.is_meta for p in model.parameters())  # a plan runs on meta tensors, which have no foreach
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm, foreach=is_real)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class MovingAverage:
    """Exponential moving average of the weights, sharded as they are and on the same device, in float32."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after `step`; early on faster, so that the first weights are soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local_part(t) for t in self.tensors.values()]
        torch._foreach_lerp_(averages, [local_part(p) for p in model.parameters()], 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights; no more than one shard of one parameter is copied at a time."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        reshard(model)
        for name, parameter in model.named_parameters():
            weight, average = local_part(parameter), local_part(self.tensors[name])
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

"""AdamW, the learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from oneflow_dist.config import OptimConfig, group_of
from oneflow_dist.model.axis import local_part
from oneflow_dist.parallel.sharding import reshard


class AdamW:
    """AdamW over what this rank holds of the weights; weight decay acts on matrices, not on norms and biases.

    It steps plain tensors: torch's own, over DTensors, leaves Python objects behind in every step (pytorch#188174). Its
    clock counts the steps that were made, on the device, where it is decided which are.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, without: Container[str] = ()):
        """`without`: names of weights that somebody else moves."""
        self.config = config
        self.weights = {name: weight for name, weight in trained_weights(model).items() if name not in without}
        self.first_moments = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.second_moments = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.clock = torch.zeros((), device=local_part(next(model.parameters())).device)
        self.alike: dict[tuple[float, float], list[str]] = {}  # names by their factors of lr and weight decay
        for name, weight in self.weights.items():
            group = group_of(name, config)
            factors = group.lr_factor, group.decay_factor if weight.ndim >= 2 else 0.0
            self.alike.setdefault(factors, []).append(name)

    @property
    def tensors(self) -> dict[str, Any]:
        """All that it remembers from step to step."""
        return {"first": self.first_moments, "second": self.second_moments, "clock": self.clock}

    @torch.no_grad()
    def step(self, lr: float, divisor: Float32[Tensor, ""], is_skipped: Float32[Tensor, ""]) -> None:
        """Move the weights along their gradients over `divisor`, or nothing at all where `is_skipped` is 1.

        Both are read by the kernel that moves the weights: nothing waits for them, and no pass scales the gradients.
        """
        divisor, is_skipped = divisor.to(self.clock.device), is_skipped.to(self.clock.device)
        self.clock += 1.0
        for (lr_factor, decay_factor), names in self.alike.items():
            gradients = [self.weights[name].grad for name in names]
            torch._fused_adamw_(
                self._parts(self.weights, names),
                [local_part(gradient) for gradient in gradients if gradient is not None],
                self._parts(self.first_moments, names),
                self._parts(self.second_moments, names),
                [],
                [self.clock] * len(names),
                lr=lr * lr_factor,
                beta1=self.config.beta1,
                beta2=self.config.beta2,
                weight_decay=self.config.weight_decay * decay_factor,
                eps=self.config.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
                found_inf=is_skipped,
            )
        self.clock -= is_skipped

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights.values():
            weight.grad = None

    def _parts(self, tensors: Mapping[str, Tensor], names: list[str]) -> list[Tensor]:
        return [local_part(tensors[name]) for name in names]


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the frozen ones."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """The lr of a step (the first is 1): linear warmup, then what `lr_schedule` says, see `OptimConfig`.

    Source: arXiv:1608.03983 (cosine), arXiv:1706.03762 (inverse square root), arXiv:2404.06395 (WSD).
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    floor, lr = config.final_lr_fraction, config.lr
    if config.lr_schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
        return lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
    if config.lr_schedule == "inverse_sqrt":
        lr *= math.sqrt(max(1, config.warmup_steps) / step)
    if config.lr_schedule == "constant" or num_steps - step >= config.decay_steps:
        return lr
    return lr * (floor + (1.0 - floor) * (num_steps - step) / config.decay_steps)


@torch.no_grad()
def gradient_norm(model: nn.Module) -> Float32[Tensor, ""]:
    """Of all gradients together, over parameters and ranks; does not wait for the device."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    is_real = not any(p.is_meta for p in model.parameters())  # a plan runs on meta tensors, which have no foreach
    norm = nn.utils.get_total_norm(gradients, foreach=is_real)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_divisor(grad_norm: Float32[Tensor, ""], max_norm: float) -> Float32[Tensor, ""]:
    """What gradients are divided by so that their norm is at most `max_norm`; 1 where it is."""
    return (grad_norm / max_norm).clamp(min=1.0)


class MovingAverage:
    """Exponential moving average of the trained weights, sharded as they are and on the same device, in float32."""

    def __init__(self, model: nn.Module, decay: float, every_steps: int = 1):
        self.decay, self.every_steps = decay, every_steps
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in trained_weights(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after `step`; early on faster, so that the first weights are soon forgotten.

        Only after multiples of `every_steps`, and then as far as in so many steps with these weights.
        """
        if step % self.every_steps:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.every_steps
        averages = [local_part(t) for t in self.tensors.values()]
        torch._foreach_lerp_(averages, [local_part(p) for p in trained_weights(model).values()], 1.0 - decay)

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
        for name, parameter in trained_weights(model).items():
            weight, average = local_part(parameter), local_part(self.tensors[name])
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

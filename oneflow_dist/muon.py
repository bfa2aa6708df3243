"""Muon for the products of the trunk, AdamW for all else."""

# Shapes: m rows, n columns of one weight.

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist.config import PRODUCTS, Config, group_of
from oneflow_dist.model.axis import local_part
from oneflow_dist.model.llama import join_product, split_product
from oneflow_dist.optim import AdamW, trained_weights

# DTensor says of weights that two axes cut that it gathers them one axis after the other.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a polynomial, after whose iterations all that was above 0.002 is near 1
NUM_ITERATIONS = 5
OF_ADAMW = 0.2  # the root mean square of AdamW's steps, about: lr and weight decay mean the same for both


class Muon(AdamW):
    """Each matrix moves along the orthogonal matrix that is nearest to its gradient's running mean.

        mean    = mean + (1 - MOMENTUM) (gradient - mean)
        update  = gradient + MOMENTUM (mean - gradient)
        weight -= lr (0.2 sqrt(max(m, n)) orthogonal(update) + weight_decay * weight)

    Query, key and value are matrices of their own, gate and up too. Orthogonal is a matter of whole matrices: the ranks
    gather each, one of them in turn makes it orthogonal, and all get its result, so that none repeats another's work
    and all have the same bits. Its products are in the precision of the run's.

    Source: https://kellerjordan.github.io/posts/muon; arXiv:2502.16982 (the size of a step).
    """

    def __init__(self, model: nn.Module, config: Config):
        products = tuple(f".{name}.weight" for name in PRODUCTS)
        self.matrices = {name: weight for name, weight in trained_weights(model).items() if name.endswith(products)}
        super().__init__(model, config.optim, without=self.matrices)
        self.model = config.model
        self.dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
        self.means = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}

    @property
    def tensors(self) -> dict[str, Any]:
        """All that it remembers from step to step."""
        return super().tensors | {"mean": self.means}

    @torch.no_grad()
    def step(self, lr: float, divisor: Float32[Tensor, ""], is_skipped: Float32[Tensor, ""]) -> None:
        """As AdamW's."""
        super().step(lr, divisor, is_skipped)
        divisor, is_made = divisor.to(self.clock.device), is_skipped.to(self.clock.device) == 0.0
        for number, (name, weight) in enumerate(self.matrices.items()):
            assert weight.grad is not None, f"{name}: no gradient"
            group = group_of(name, self.config)
            gradient, mean = local_part(weight.grad) / divisor, local_part(self.means[name])
            mean.copy_(torch.where(is_made, mean.lerp(gradient, 1.0 - MOMENTUM), mean))
            update = self._orthogonal(name, gradient.lerp(mean, MOMENTUM), weight, number % dist.get_world_size())
            way = lr * group.lr_factor
            moved = local_part(weight) * (1.0 - way * self.config.weight_decay * group.decay_factor) - way * update
            local_part(weight).copy_(torch.where(is_made, moved, local_part(weight)))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        super().zero_grad()
        for weight in self.matrices.values():
            weight.grad = None

    def _orthogonal(self, name: str, update: Tensor, weight: Tensor, owner: int) -> Tensor:
        """This rank's part of the orthogonal matrices of an update, of which it has a part."""
        whole = update.contiguous()
        if isinstance(weight, DTensor):
            mesh, placements, shape, stride = weight.device_mesh, weight.placements, weight.shape, weight.stride()
            whole = DTensor.from_local(update, mesh, placements, shape=shape, stride=stride).full_tensor()
        if dist.get_rank() == owner:
            parts = [scaled_orthogonal(part, self.dtype) for part in split_product(name, whole, self.model)]
            whole = join_product(name, parts, self.model)
        dist.broadcast(whole, src=owner)
        if not isinstance(weight, DTensor):
            return whole
        return local_part(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None))


def scaled_orthogonal(x: Float32[Tensor, "m n"], dtype: torch.dtype) -> Float32[Tensor, "m n"]:
    """The orthogonal matrix nearest to `x`, about, at the size of AdamW's steps.

    Singular values end between 0.7 and 1.2, those below 0.002 of the norm lower: more exact is not better.
    """
    a, b, c = COEFFICIENTS
    y = (x.T if len(x) > x.shape[1] else x).to(dtype)
    y = y / y.norm().clamp(min=1e-20)
    for _ in range(NUM_ITERATIONS):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    y = y.T if len(x) > x.shape[1] else y
    return y.to(x.dtype) * (OF_ADAMW * math.sqrt(max(x.shape)))


def make_optimizer(model: nn.Module, config: Config) -> AdamW:
    """The one that [optim] names."""
    return Muon(model, config) if config.optim.matrices == "muon" else AdamW(model, config.optim)

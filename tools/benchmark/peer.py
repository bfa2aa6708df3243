"""The peer: torchtitan's own Llama, loss, optimizer and parallelization, in a training step like its trainer's."""

# Shapes: B sequences, L tokens of each.

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from oneflow_dist.config import Config
from oneflow_dist.model.flops import training_flops
from tools.benchmark.timing import INPUT_SETS

# What torchtitan imports for its data alone, and this file never reaches: packages, and the modules it asks of them.
UNREACHED = {"torchdata": ("torchdata.stateful_dataloader",), "datasets": ("datasets.distributed",)}


class Unreached(types.ModuleType):
    """A module that is not installed: everything in it is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def without_data_packages() -> Iterator[None]:
    """Inside, torchtitan can be imported where the packages of its data loading are not installed."""
    missing = [package for package in UNREACHED if importlib.util.find_spec(package) is None]
    names = [name for package in missing for name in (package, *UNREACHED[package])]
    sys.modules.update({name: Unreached(name) for name in names})
    yield
    for name in names:
        del sys.modules[name]


class Titan:
    """torchtitan's model and what its trainer builds around it, on one device.

    Args:
        length: tokens of a sequence.
        uses_fsdp: bfloat16 through FSDP on a mesh of one, as its trainer on several devices; else through autocast, as
            its trainer on one.
    """

    def __init__(self, config: Config, length: int, uses_fsdp: bool, device: torch.device):
        with without_data_packages():
            from torchtitan.config import JobConfig
            from torchtitan.distributed import ParallelDims, utils
            from torchtitan.models.llama3 import get_train_spec
            from torchtitan.models.llama3.infra.parallelize import apply_fsdp

        job, spec = JobConfig(), get_train_spec()
        job.training.seq_len = length
        job.compile.enable = config.train.compile
        job.activation_checkpoint.mode = config.train.activation_checkpointing
        job.activation_checkpoint.selective_ac_option = "op"
        axes = dict.fromkeys(("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp"), 1)
        parallel = ParallelDims(**axes, world_size=1)
        args = model_args(config, length)
        with torch.device("meta"):
            model = spec.model_cls(args)
        _, self.flops_per_token = args.get_nparams_and_flops(model, length)
        model = spec.parallelize_fn(model, parallel, job)
        if uses_fsdp:
            mesh = init_device_mesh(device.type, (1,), mesh_dim_names=("fsdp",))
            apply_fsdp(model, mesh, torch.bfloat16, torch.float32, pp_enabled=False)
            sum_without_scaling(model)
        model.to_empty(device=device)
        with torch.no_grad():
            model.init_weights(buffer_device=None)
        self.model: nn.Module = model.train()
        self.optimizers = spec.build_optimizers_fn([model], job.optimizer, parallel)
        self.loss = spec.build_loss_fn(job)
        self.max_norm = job.training.max_norm
        self.clip = utils.clip_grad_norm_
        self.precision = torch.autocast(device.type, torch.bfloat16, enabled=not uses_fsdp)

    def step(self, tokens: Int64[Tensor, "B L+1"]) -> Tensor:
        """One optimizer step; returns the mean loss."""
        self.optimizers.zero_grad()
        labels = tokens[:, 1:]
        with self.precision:
            logits = self.model(tokens[:, :-1])
            loss = self.loss(logits, labels) / labels.numel()
        del logits  # as its trainer: their gradient takes their place
        loss.backward()
        self.clip(self.model.parameters(), self.max_norm, foreach=True)
        self.optimizers.step()
        return loss.detach()


class PeerSteps:
    """Steps of the peer on equal documents of random tokens, all of them scored.

    Args:
        sequences: documents of a step.
        length: tokens of each.
        uses_fsdp: as of `Titan`.
    """

    def __init__(self, config: Config, sequences: int, length: int, uses_fsdp: bool, device: torch.device):
        self.titan = Titan(config, length, uses_fsdp, device)
        shape = INPUT_SETS, sequences, length + 1
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(config.model.vocab_size, shape, generator=generator).to(device)
        self.rows = sequences * length  # of a step
        self.flops = training_flops(config, self.rows, self.rows * length / 2, head_slots=self.rows)

    def step(self, number: int) -> None:
        """One optimizer step on the input set of a number."""
        self.titan.step(self.tokens[number % INPUT_SETS])


def model_args(config: Config, length: int) -> Any:
    """The shape of [model] in torchtitan's terms.

    Its MLP is as wide as a factor of 8/3 of the width, rounded up to a multiple; the multiple is the width we want.
    """
    from torchtitan.models.llama3 import TransformerModelArgs

    model = config.model
    return TransformerModelArgs(
        dim=model.width,
        n_layers=model.num_layers,
        n_heads=model.num_attention_heads,
        n_kv_heads=model.num_kv_heads,
        vocab_size=model.vocab_size,
        multiple_of=model.mlp_width,
        ffn_dim_multiplier=model.mlp_width / int(8 * model.width / 3),
        norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
        max_seq_len=length,
    )


def sum_without_scaling(model: nn.Module) -> None:
    """Reduce gradients by plain sums, which gloo knows too; of one rank they are the gradients themselves."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)

"""The loss of bags of tokens, and tokens for slots that fire: ours and what else there is for large vocabularies."""

# Shapes: N slots, B bag tokens, D width, V vocabulary.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from oneflow_dist.containers import PackedBatch
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.sample_bag import sample_bag
from tools.benchmark.contest import Call, Case, Inputs, Outputs, Prepare

CHUNK = 2048  # slots whose logits exist at a time in chunked peers
COMPARED = 256  # slots and tokens whose gradients are compared with float64
FIRING = 2048  # slots for which tokens are drawn
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of rows, the unembedding and their targets: the sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes, and where the bags are."""

    name: str
    slots: int
    width: int
    vocab: int
    bag_slot: Tensor  # of all bag tokens, those of padding last
    num_bags: int  # bag tokens that are no padding
    num_filled: int  # slots with a bag, that of padding too


def bag_cases(device: torch.device, scale: int) -> Iterator[Case]:
    """One token in every other slot; on a CPU every size is `scale` times smaller."""
    slots = 16384 // scale
    bag_slot = torch.arange(0, slots, 2, device=device)
    sizes = {"slots": slots, "width": 4096 // scale, "vocab": 128256 // scale}
    shape = Shape(name="8B", **sizes, bag_slot=bag_slot, num_bags=len(bag_slot), num_filled=len(bag_slot))
    yield loss_case(shape, device)
    yield sampling_case(shape, device)


def packed_case(batch: PackedBatch, width: int, vocab: int, device: torch.device) -> Case:
    """The bags of a pack, padding included, as the model has them."""
    sizes = {"slots": len(batch.tokens), "width": width, "vocab": vocab}
    bags = {"num_bags": batch.counts.bag_tokens, "num_filled": batch.num_filled}
    return loss_case(Shape(name="real pack", **sizes, bag_slot=batch.bag_slot.to(device), **bags), device)


def loss_case(shape: Shape, device: torch.device) -> Case:
    """The loss with its gradients. Peers get a slot's row again for each token of its bag, and no padding."""
    peers: dict[str, Loss] = {
        "logits, chunked": chunked_loss,
        "logits, compiled": torch.compile(whole_loss, dynamic=False),
        "logits, eager": whole_loss,
        "torch linear_cross_entropy": torch_fused_loss,
        "Liger fused linear": liger_loss,
        "quack linear cross entropy": quack_loss,
    }
    if not hasattr(F, "linear_cross_entropy"):
        del peers["torch linear_cross_entropy"]
    return Case(
        name=f"bag loss, {shape.name}, forward and backward",
        make_inputs=lambda seed: make_inputs(shape, device, seed),
        contenders={"ours": lambda inputs: make_ours(shape, inputs)} | {n: as_peer(loss) for n, loss in peers.items()},
        flops=6.0 * shape.num_filled * shape.width * shape.vocab,
        outputs=("loss", "dhidden", "dweight"),
        parts=lambda outputs: [output[:COMPARED] if output.ndim else output for output in outputs],
        truth=loss_in_float64,
    )


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """Hidden states, unembedding and bags."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16, generator=generator)

    hidden = normal(shape.slots, shape.width).requires_grad_()
    weight = (normal(shape.vocab, shape.width) * shape.width**-0.5).requires_grad_()
    bag_tokens = torch.randint(shape.vocab, (len(shape.bag_slot),), device=device, generator=generator)
    bag_weight = (torch.arange(len(shape.bag_slot), device=device) < shape.num_bags).float() / shape.num_bags
    return hidden, weight, bag_tokens, shape.bag_slot, bag_weight


def make_ours(shape: Shape, inputs: Inputs) -> Call:
    """As the model calls it."""
    hidden, weight, bag_tokens, bag_slot, bag_weight = inputs
    bags = bag_tokens, bag_slot, bag_weight, shape.num_filled
    return _with_gradients(lambda: bag_cross_entropy(hidden, weight, *bags), inputs)


def as_peer(loss: Loss) -> Prepare:
    """The mean over bag tokens, of rows that are gathered and so get their gradients summed."""

    def prepare(inputs: Inputs) -> Call:
        hidden, weight, tokens, slots = without_padding(inputs)
        return _with_gradients(lambda: loss(hidden[slots], weight, tokens) / len(slots), inputs)

    return prepare


def without_padding(inputs: Inputs) -> Inputs:
    """All but the weights, which are equal then."""
    hidden, weight, bag_tokens, bag_slot, bag_weight = inputs
    return hidden, weight, bag_tokens[bag_weight > 0.0], bag_slot[bag_weight > 0.0]


def _with_gradients(loss: Callable[[], Tensor], inputs: Inputs) -> Call:
    def call() -> Outputs:
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, inputs[:2])]

    return call


def whole_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="sum")


def chunked_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of a chunk at a time, computed again for the gradients."""
    parts = zip(rows.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.stack([checkpoint(whole_loss, r, weight, t, use_reentrant=False) for r, t in parts]).sum()


def torch_fused_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The one that torch has from 2.13 on. Left to itself it takes 128 rows at a time and sums 64 times in bf16."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, acc_policy="balanced", acc_dtype=torch.float32)
    return F.linear_cross_entropy(rows, weight, targets, reduction="sum", options=options)


def liger_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Triton, gradients in forward, few rows a chunk."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, rows, targets)


def quack_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """CuTe on Hopper and later: products of its own, gradients of all chunks but the last in forward."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    missing = -len(rows) % 8  # it takes multiples of 8 rows; targets of -100 count for nothing
    rows, targets = F.pad(rows, (0, 0, 0, missing)), F.pad(targets, (0, missing), value=-100)
    return chunked_linear_cross_entropy(rows, weight, targets, ignore_index=-100, reduction="sum")


def loss_in_float64(inputs: Inputs) -> list[Tensor]:
    """The loss, and the gradients of the first slots and of the first tokens' rows."""
    hidden, weight, bag_tokens, bag_slot = without_padding(inputs)
    weight, num_bags = weight.detach().double(), len(bag_tokens)
    of_slots, of_tokens = (torch.zeros_like(x[:COMPARED], dtype=torch.float64) for x in (hidden, weight))
    loss = torch.zeros_like(of_slots[0, 0])
    for slots, targets in zip(bag_slot.split(COMPARED), bag_tokens.split(COMPARED), strict=True):
        rows = hidden[slots].detach().double()
        log_probs = (rows @ weight.T).log_softmax(-1)
        loss -= log_probs.gather(1, targets[:, None]).sum() / num_bags
        change = (log_probs.exp() - F.one_hot(targets, len(weight))) / num_bags
        of_tokens += change[:, :COMPARED].T @ rows
        is_first = slots < COMPARED
        of_slots.index_add_(0, slots[is_first], (change @ weight)[is_first])
    return [loss, of_slots, of_tokens]


def sampling_case(shape: Shape, device: torch.device) -> Case:
    """A token for each of the first slots; random, so there is no error to measure."""
    slots = min(FIRING, shape.slots)

    def make(seed: int) -> Inputs:
        hidden, weight, *_ = make_inputs(shape, device, seed)
        keys = torch.randint(2**62, (slots,), device=device, generator=torch.Generator(device).manual_seed(seed))
        return hidden.detach()[:slots], weight.detach(), keys

    compiled = torch.compile(gumbel_max, dynamic=False)
    return Case(
        name=f"sampling, {shape.name}",
        make_inputs=make,
        contenders={
            "ours": lambda inputs: lambda: [sample_bag(inputs[0], inputs[1], inputs[2], 1.0, shape.vocab)],
            "logits, compiled": lambda inputs: lambda: [compiled(*inputs[:2])],
            "logits, eager": lambda inputs: lambda: [gumbel_max(*inputs[:2])],
        },
        flops=2.0 * slots * shape.width * shape.vocab,
    )


def gumbel_max(hidden: Tensor, weight: Tensor) -> Tensor:
    """The token with the highest logit plus Gumbel noise."""
    logits = F.linear(hidden, weight).float()
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)

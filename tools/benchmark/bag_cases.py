"""The loss of bags of tokens, and tokens for slots that fire: ours and what else there is for large vocabularies."""

# Shapes: N slots, B bag tokens, D width, V vocabulary, F slots that fire.

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
from tools.benchmark.contest import Call, Case, Contender, Inputs, Outputs

CHUNK = 2048  # slots whose logits exist at a time in the chunked peer
COMPARED = 256  # slots and tokens whose gradients are compared with float64
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of rows, the unembedding and their targets: the sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes, and where the bags are: without `bag_slot` one token in every other slot."""

    name: str
    slots: int
    width: int
    vocab: int
    bag_slot: Tensor | None = None  # of all bag tokens, those of padding last
    num_bags: int = 0  # bag tokens that are no padding
    num_filled: int = 0  # slots with a bag, that of padding too

    @property
    def filled(self) -> int:
        """Slots with logits."""
        return self.num_filled or self.slots // 2


def bag_cases(device: torch.device, scale: int) -> Iterator[Case]:
    """All of them; on a CPU every size is `scale` times smaller."""
    shape = Shape(name="8B", slots=16384 // scale, width=4096 // scale, vocab=128256 // scale)
    yield loss_case(shape, device)
    yield sampling_case(shape, device)


def packed_case(batch: PackedBatch, width: int, vocab: int, device: torch.device) -> Case:
    """The bags of a pack, padding included, as the model has them."""
    shape = Shape(
        name="real pack",
        slots=len(batch.tokens),
        width=width,
        vocab=vocab,
        bag_slot=batch.bag_slot.to(device),
        num_bags=batch.counts.bag_tokens,
        num_filled=batch.num_filled,
    )
    return loss_case(shape, device)


def loss_case(shape: Shape, device: torch.device) -> Case:
    """The loss with its gradients. Peers get a slot's row again for each token of its bag, and no padding."""
    peers: list[tuple[str, Loss, str]] = [
        ("logits, chunked", chunked_loss, ""),
        ("logits, compiled", torch.compile(whole_loss, dynamic=False), ""),
        ("logits, eager", whole_loss, ""),
    ]
    if hasattr(F, "linear_cross_entropy"):
        peers.append(("torch linear_cross_entropy", torch_fused_loss, ""))
    peers.append(("Liger fused linear", liger_loss, "liger_kernel"))

    def peer(name: str, loss: Loss, needs: str) -> Contender:
        return Contender(name=name, prepare=lambda inputs: make_peer(loss, inputs), needs=needs)

    return Case(
        name=f"bag loss, {shape.name}, forward and backward",
        make_inputs=lambda seed: make_inputs(shape, device, seed),
        contenders=(
            Contender(name="ours", prepare=lambda inputs: make_ours(shape, inputs), is_ours=True),
            *(peer(*arguments) for arguments in peers),
        ),
        flops=6.0 * shape.filled * shape.width * shape.vocab,
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
    bag_slot = torch.arange(0, shape.slots, 2, device=device) if shape.bag_slot is None else shape.bag_slot
    bag_tokens = torch.randint(shape.vocab, (len(bag_slot),), device=device, generator=generator)
    num_bags = shape.num_bags or len(bag_slot)
    bag_weight = (torch.arange(len(bag_slot), device=device) < num_bags).float() / num_bags
    return hidden, weight, bag_tokens, bag_slot, bag_weight


def make_ours(shape: Shape, inputs: Inputs) -> Call:
    """As the model calls it."""
    hidden, weight, bag_tokens, bag_slot, bag_weight = inputs

    def loss() -> Tensor:
        return bag_cross_entropy(hidden, weight, bag_tokens, bag_slot, bag_weight, shape.filled)

    return _call(loss, inputs)


def make_peer(loss: Loss, inputs: Inputs) -> Call:
    """The mean over bag tokens, of rows that are gathered and so get their gradients summed."""
    hidden, weight, tokens, slots = without_padding(inputs)
    return _call(lambda: loss(hidden[slots], weight, tokens) / len(slots), inputs)


def without_padding(inputs: Inputs) -> Inputs:
    """All but the weights, which are equal then."""
    hidden, weight, bag_tokens, bag_slot, bag_weight = inputs
    return hidden, weight, bag_tokens[bag_weight > 0.0], bag_slot[bag_weight > 0.0]


def _call(loss: Callable[[], Tensor], inputs: Inputs) -> Call:
    def both() -> Outputs:
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, inputs[:2])]

    return both


def whole_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(rows, weight).float(), targets, reduction="sum")


def chunked_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of a chunk at a time, computed again for the gradients."""
    parts = zip(rows.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.stack([checkpoint(whole_loss, r, weight, t, use_reentrant=False) for r, t in parts]).sum()


def torch_fused_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The one that torch has from 2.13 on, with its chunking."""
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(rows, weight, targets, reduction="sum", options=options)


def liger_loss(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Triton, gradients in forward, few rows a chunk."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, rows, targets)


def loss_in_float64(inputs: Inputs) -> list[Tensor]:
    """The loss, and the gradients of the first slots and of the first tokens' rows."""
    hidden, weight, bag_tokens, bag_slot = without_padding(inputs)
    weight, num_bags = weight.detach().double(), len(bag_tokens)
    first = torch.zeros(min(COMPARED, len(hidden)), hidden.shape[1], dtype=torch.float64, device=hidden.device)
    tokens = torch.zeros(min(COMPARED, len(weight)), hidden.shape[1], dtype=torch.float64, device=hidden.device)
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for slots, targets in zip(bag_slot.split(COMPARED), bag_tokens.split(COMPARED), strict=True):
        rows = hidden[slots].detach().double()
        log_probs = (rows @ weight.T).log_softmax(-1)
        loss -= log_probs.gather(1, targets[:, None]).sum() / num_bags
        change = (log_probs.exp() - F.one_hot(targets, len(weight))) / num_bags
        tokens += change[:, : len(tokens)].T @ rows
        is_first = slots < len(first)
        first.index_add_(0, slots[is_first], (change @ weight)[is_first])
    return [loss, first, tokens]


def sampling_case(shape: Shape, device: torch.device) -> Case:
    """A token for each of 2,048 slots (fewer on a CPU); random, so there is no error to measure."""
    slots = min(2048, shape.slots)

    def inputs(seed: int) -> Inputs:
        hidden, weight, *_ = make_inputs(shape, device, seed)
        generator = torch.Generator(device).manual_seed(seed)
        keys = torch.randint(2**62, (slots,), device=device, generator=generator)
        return hidden.detach()[:slots], weight.detach(), keys

    compiled = torch.compile(gumbel_max, dynamic=False)
    return Case(
        name=f"sampling, {shape.name}",
        make_inputs=inputs,
        contenders=(
            Contender(name="ours", prepare=lambda inputs: make_sampling(shape, inputs), is_ours=True),
            Contender(name="logits, compiled", prepare=lambda own: _draw(compiled, own)),
            Contender(name="logits, eager", prepare=lambda own: _draw(gumbel_max, own)),
        ),
        flops=2.0 * slots * shape.width * shape.vocab,
    )


def make_sampling(shape: Shape, inputs: Inputs) -> Call:
    """As the sampler calls it."""
    hidden, weight, keys = inputs
    return lambda: [sample_bag(hidden, weight, keys, 1.0, shape.vocab)]


def _draw(function: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> Call:
    return lambda: [function(inputs[0], inputs[1])]


def gumbel_max(hidden: Tensor, weight: Tensor) -> Tensor:
    """The token with the highest logit plus Gumbel noise."""
    logits = F.linear(hidden, weight).float()
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)

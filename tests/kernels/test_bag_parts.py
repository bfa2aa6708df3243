"""The loss over parts of a vocabulary on several ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_kernels.vocabulary_part import VocabularyPart
from tests.kernels.bags import SHAPES, Case, Result, assert_exact, make_case, make_small, run, run_alone
from tests.launching import Launcher


@dataclasses.dataclass(frozen=True)
class Deal:
    """Cases for the ranks of a group."""

    dtype: torch.dtype
    is_chunked: bool = False
    backend: str = "reference"

    def cases(self) -> list[Case]:
        shapes = list(SHAPES.values()) if self.backend == "reference" else [SHAPES["usual"], SHAPES["none"]]
        return [make_case(bag_slot, self.dtype, vocab=48, seed=3) for bag_slot in shapes]


def run_on_ranks(deal: Deal) -> list[tuple[Result, Tensor]]:
    rank, size = dist.get_rank(), dist.get_world_size()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", deal.backend)
        if deal.is_chunked:
            make_small(patch, 2, 0.17)
        for case in deal.cases():
            own = case.weight.detach().chunk(size)[rank].requires_grad_()
            part = VocabularyPart(size=size, group=dist.group.WORLD.group_name, first_token=rank * len(own))
            own_case = case._replace(weight=own)
            found.append((run(own_case, part), run_alone(own_case, part)))
    return found


@pytest.mark.parametrize(
    ("deal", "tolerance", "size"),
    [
        (Deal(torch.float64), 1e-12, 4),
        (Deal(torch.float64, is_chunked=True), 1e-12, 2),
        (Deal(torch.float32, is_chunked=True, backend="triton"), 2e-6, 2),
        (Deal(torch.bfloat16), 8e-3, 4),  # the ranks round their gradients of hidden rows before they are summed
    ],
    ids=["float64", "chunks", "triton", "bfloat16"],
)
def test_ranks_with_parts_of_the_vocabulary_make_the_loss_of_one(
    launcher: Launcher, deal: Deal, tolerance: float, size: int
) -> None:
    ranks = launcher.call(size, run_on_ranks, deal)
    for number, case in enumerate(deal.cases()):
        one = run(case)
        own = [results[number][0] for results in ranks]
        shares = torch.stack([result.loss for result in own])
        assert_exact([shares.sum(), shares[0] * size], [one.loss, one.loss], tolerance)
        d_hidden, d_weight = sum(result.d_hidden for result in own), torch.cat([result.d_weight for result in own])
        assert_exact([d_hidden, d_weight], [one.d_hidden, one.d_weight], tolerance)
        for _, loss in (results[number] for results in ranks):
            assert_exact([loss * size], [one.loss], tolerance)

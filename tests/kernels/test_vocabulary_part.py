from __future__ import annotations

import torch
import torch.distributed as dist

from oneflow_kernels.vocabulary_part import WHOLE, VocabularyPart, begin_gather, begin_sum, finish
from tests.launching import Launcher


def exchange() -> list[list[float]]:
    """Of [rank, 10 rank]: what all have, and the sum."""
    rank, size = dist.get_rank(), dist.get_world_size()
    part = VocabularyPart(size=size, group=dist.group.WORLD.group_name)
    own = torch.tensor([rank, 10.0 * rank])
    return [finish(begin(own, part), part).flatten().tolist() for begin in (begin_gather, begin_sum)]


def test_ranks_get_what_all_have_and_its_sum(launcher: Launcher) -> None:
    for found in launcher.call(3, exchange):
        assert found == [[0.0, 0.0, 1.0, 10.0, 2.0, 20.0], [3.0, 30.0]]


def test_a_whole_vocabulary_sends_nothing() -> None:
    own = torch.randn(3)
    assert torch.equal(finish(begin_gather(own, WHOLE), WHOLE), own[None])
    assert finish(begin_sum(own, WHOLE), WHOLE) is own

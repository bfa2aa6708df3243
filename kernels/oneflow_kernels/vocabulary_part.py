"""A rank's part of a vocabulary that several ranks share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class VocabularyPart(NamedTuple):
    """Which tokens this rank has the rows of, and who has the others."""

    size: int = 1  # ranks
    group: str = ""  # name of their process group
    first_token: int = 0


WHOLE = VocabularyPart()


def begin_gather(x: Shaped[Tensor, "*shape"], part: VocabularyPart) -> Shaped[Tensor, "size *shape"]:
    """Send a rank's own to all; what comes back has no values before `finish`."""
    if part.size == 1:
        return x[None]
    return torch.ops._c10d_functional.all_gather_into_tensor(x[None].contiguous(), part.size, part.group)


def begin_sum(x: Shaped[Tensor, "*shape"], part: VocabularyPart) -> Shaped[Tensor, "*shape"]:
    """Add up what the ranks have; what comes back has no values before `finish`."""
    if part.size == 1:
        return x
    return torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", part.group)


def finish(x: Shaped[Tensor, "*shape"], part: VocabularyPart) -> Shaped[Tensor, "*shape"]:
    """What was begun, when it has come."""
    return x if part.size == 1 else torch.ops._c10d_functional.wait_tensor(x)

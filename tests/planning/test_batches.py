from __future__ import annotations

from collections.abc import Callable

import torch

from oneflow_dist.config import Config
from oneflow_dist.planning.batches import make_batch


def test_made_up_batches_are_full_and_the_same_for_the_same_number(make_config: Callable[..., Config]) -> None:
    config = make_config("data.bag_tokens_per_pack=4096", "data.tokens_per_pack=2048")
    first, again, other = (make_batch(config, number) for number in (0, 0, 1))
    assert first.counts.rows > 0.97 * config.data.rows_per_pack
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.pieces[0].patches, again.pieces[0].patches)
    assert not torch.equal(first.tokens, other.tokens)

from __future__ import annotations

import torch

from oneflow_dist.model.kv_cache import KVCache


def test_keys_of_earlier_rows_come_before_new_ones_of_their_sequence() -> None:
    """Two sequences, with rows 0 and 1, and 2, from before, and 3, and 4 and 5, of now."""
    rows = torch.arange(6.0)[:, None, None].expand(6, 2, 3)
    before = torch.stack([rows[:3], 10.0 + rows[:3]])
    seqlens = torch.tensor([0, 3, 6], dtype=torch.int32)
    kept = KVCache(before, torch.tensor([0, 1, 3, 2, 4, 5]), seqlens)
    key, value = kept.join(rows[3:], 10.0 + rows[3:])
    assert key[:, 0, 0].tolist() == [0.0, 1.0, 3.0, 2.0, 4.0, 5.0]
    assert value.equal(10.0 + key)
    assert kept.new is not None
    assert kept.new.equal(torch.stack([rows[3:], 10.0 + rows[3:]]))


def test_where_nothing_was_before_the_rows_have_their_own_keys() -> None:
    rows = torch.randn(4, 2, 3)
    key, value = KVCache(None, torch.arange(4), torch.tensor([0, 4], dtype=torch.int32)).join(rows, -rows)
    assert key.equal(rows)
    assert value.equal(-rows)

from __future__ import annotations

import torch

from oneflow_kernels.key_intervals import key_intervals
from oneflow_kernels.reference_attention import interval_attention


def test_each_row_is_a_softmax_over_its_own_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 2, 4, dtype=torch.float64, generator=generator)
    key, value = (torch.randn(7, 1, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    start, end = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 0, 2, 3, 3], [2, 2, 2, 5, 6]))
    out, logsumexp = interval_attention(query, key, value, key_intervals(start, end, 7))
    for row in range(5):
        seen = slice(int(start[row]), int(end[row]))
        for head in range(2):
            scores = key[seen, 0] @ query[row, head] / 2.0
            torch.testing.assert_close(logsumexp[head, row], scores.logsumexp(0))
            torch.testing.assert_close(out[row, head], scores.softmax(0) @ value[seen, 0])
    assert out[2].tolist() == [[0.0] * 4] * 2  # an empty interval

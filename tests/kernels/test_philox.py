from __future__ import annotations

import torch

from oneflow_kernels.philox import philox


def test_words_are_those_that_the_authors_publish() -> None:
    """The known answers of Random123."""

    def words(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
        a, b, c, d = (torch.tensor([word]) for word in counter)
        return [int(word) for word in philox((a, b, c, d), key)]

    ones = 0xFFFFFFFF
    assert words((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((ones,) * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_each_counter_may_have_a_key_of_its_own() -> None:
    counter, zero = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    keys = torch.arange(10, 14)[:, None], torch.arange(20, 24)[:, None]
    together = torch.stack(philox((counter, zero, zero, zero), keys))
    for row in range(4):
        alone = torch.stack(philox((counter, zero, zero, zero), (10 + row, 20 + row)))
        assert torch.equal(together[:, row], alone)

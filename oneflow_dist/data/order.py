"""Which sample a lane takes at its n-th draw: a shuffle that is computed and not stored."""

# Shapes: k positions.

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from jaxtyping import Int64

from oneflow_dist.data.shards import ShardSet
from oneflow_dist.flow.noising import keyed_generator

ROUNDS = 8
BLOCK = 1024  # draws that are computed together


class Permutation:
    """A shuffle of `range(size)` in constant memory: a Feistel network over pairs of digits, walked until inside.

    A number below left * right is a pair (a, b); each round adds to one half a random function of the other, which can
    be undone, so the whole is one-to-one. left * right exceeds `size` by less than 2 * sqrt(size): walking is rare.
    """

    def __init__(self, size: int, rng: np.random.Generator):
        self.size = size
        self.left = math.isqrt(size - 1) + 1
        self.right = -(-size // self.left)
        self.keys = rng.integers(2**64, size=ROUNDS, dtype=np.uint64)

    def __call__(self, positions: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        numbers = self._shuffle(positions)
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._shuffle(numbers[outside])
        return numbers

    def _shuffle(self, numbers: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
        a, b = np.divmod(numbers, self.right)
        for key_a, key_b in zip(self.keys[::2], self.keys[1::2], strict=True):
            a = (a + _mix(b, key_a) % self.left) % self.left
            b = (b + _mix(a, key_b) % self.right) % self.right
        return a * self.right + b


class ScatteredOrder:
    """Of each pass, shuffled by (seed, source, pass), lane g of G takes every G-th sample from the g-th on."""

    def __init__(self, shards: ShardSet, seed: int, lane: int, num_lanes: int):
        self.shards = shards
        self.seed = seed
        self.lane = lane
        self.num_lanes = num_lanes
        self.samples_per_pass = len(range(lane, len(shards), num_lanes))
        self._block = functools.lru_cache(maxsize=2)(self._make_block)

    def sample_at(self, draw: int) -> tuple[int, int]:
        """(pass, index of the sample) of the lane's n-th draw."""
        pass_index, position = divmod(draw, self.samples_per_pass)
        return pass_index, int(self._block(pass_index, position // BLOCK)[position % BLOCK])

    def _make_block(self, pass_index: int, block: int) -> Int64[np.ndarray, "k"]:
        shuffle = Permutation(len(self.shards), _generator(self.seed, pass_index, self.shards.source))
        positions = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.samples_per_pass))
        return shuffle(positions * self.num_lanes + self.lane)


class ShardwiseOrder:
    """A lane owns whole shards, dealt out once; each pass shuffles its shards, and the samples within each.

    For storage where only reading a shard from end to end is cheap. The next shard is fetched while one is in use.
    """

    def __init__(self, shards: ShardSet, seed: int, lane: int, num_lanes: int):
        self.shards = shards
        self.seed = seed
        self.lane = lane
        dealt = Permutation(len(shards.paths), _generator(seed, 0, f"deal {shards.source}"))
        self.lane_shards = dealt(np.arange(lane, len(shards.paths), num_lanes))
        self.sizes = np.diff(shards.first_sample)
        self.samples_per_pass = int(self.sizes[self.lane_shards].sum())
        self._pass = functools.lru_cache(maxsize=2)(self._make_pass)
        self._within = functools.lru_cache(maxsize=2)(self._make_within)

    def sample_at(self, draw: int) -> tuple[int, int]:
        """(pass, index of the sample) of the lane's n-th draw."""
        pass_index, position = divmod(draw, self.samples_per_pass)
        order, starts = self._pass(pass_index)
        turn = int(np.searchsorted(starts, position, side="right")) - 1
        shard = int(order[turn])
        self.shards.prefetch(shard)  # first: fetches queue
        self.shards.prefetch(int(order[turn + 1]) if turn + 1 < len(order) else int(self._pass(pass_index + 1)[0][0]))
        within = int(self._within(pass_index, shard)[position - int(starts[turn])])
        return pass_index, self.shards.first_sample[shard] + within

    def _make_pass(self, pass_index: int) -> tuple[np.ndarray, np.ndarray]:
        """The lane's shards of one pass in order, without empty ones, and the draw that each begins with."""
        rng = _generator(self.seed, pass_index, f"shards of lane {self.lane} of {self.shards.source}")
        order = rng.permutation(self.lane_shards[self.sizes[self.lane_shards] > 0])
        return order, np.array(list(itertools.accumulate(self.sizes[order].tolist(), initial=0)))[:-1]

    def _make_within(self, pass_index: int, shard: int) -> Int64[np.ndarray, "k"]:
        rng = _generator(self.seed, pass_index, f"shard {shard} of {self.shards.source}")
        return rng.permutation(int(self.sizes[shard]))


def make_order(shards: ShardSet, seed: int, lane: int, num_lanes: int) -> ScatteredOrder | ShardwiseOrder:
    """The order that suits where the shards are.

    Raises:
        ValueError: a lane would have no sample.
    """
    kind = ShardwiseOrder if shards.is_remote else ScatteredOrder
    order = kind(shards, seed, lane, num_lanes)
    if order.samples_per_pass == 0:
        what, number = ("remote shards", len(shards.paths)) if shards.is_remote else ("samples", len(shards))
        raise ValueError(
            f"source {shards.source}: {number} {what} for data.packs_per_step ({num_lanes}); each lane needs one"
        )
    return order


def _generator(seed: int, pass_index: int, what: str) -> np.random.Generator:
    return keyed_generator(seed, pass_index, f"order of {what}")


def _mix(values: Int64[np.ndarray, "k"], key: np.uint64) -> Int64[np.ndarray, "k"]:
    """A random function of each value, 0 to 2**63 - 1: the finaliser of SplitMix64."""
    x = (values.astype(np.uint64) + key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)

"""Pictures that show the same: a hash of 64 bits and the colours of each, and the groups of those that are near."""

# Shapes: n pictures, m pairs of them, c values of a little picture.

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64
from PIL import Image

HASHED_SIDE, FREQUENCIES = 32, 8  # pixels along a side of the picture that is hashed, and what of its cosines counts
COLOUR_SIDE = 8  # of a little picture, of which the colours are compared
MAX_DISTANCE = 7  # bits of two hashes that may differ; with BANDS below no such pair is missed
MIN_CORRELATION = 0.97  # of two little pictures
BANDS, BAND_BITS = 4, 16  # of 7 bits that differ, at most one lies in one of the four bands
CHUNK = 1 << 18  # pairs that are compared at once


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a picture is compared with others."""

    bits: int | None  # None: of a picture of one colour, which has no cosines
    colours: bytes  # of the little picture, RGB


def sign_picture(picture: Image.Image, is_plain: bool) -> Signature:
    """The signature of an RGB picture; `is_plain`: it is of one colour.

    The hash is that of cosines: which of the lowest 8 x 8 frequencies of its brightness are above their median. It is
    blind for colours and for much of what lies on white, so that little pictures are compared, too.
    """
    little = picture.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX)
    if is_plain:
        return Signature(None, little.tobytes())
    grey = picture.convert("L").resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS)
    cosines = _cosines()
    spectrum = (cosines @ np.asarray(grey, dtype=np.float64) @ cosines.T).ravel()
    is_high = spectrum > np.median(spectrum[1:])  # the first is the mean brightness
    return Signature(int.from_bytes(np.packbits(is_high).tobytes()), little.tobytes())


def group_near(signatures: Sequence[Signature]) -> list[int]:
    """For each picture a number of its group: the first of all that are near to it, or near to such a one."""
    places: dict[Signature, int] = {}  # the same signature is compared once
    first = [places.setdefault(signature, place) for place, signature in enumerate(signatures)]
    compared = [place for signature, place in places.items() if signature.bits is not None]
    bits = np.array([signatures[place].bits for place in compared], dtype=np.uint64)
    colours = np.stack([_normalize(signatures[place].colours) for place in compared]) if compared else np.empty((0, 1))
    pairs = (
        (compared[left], compared[right])
        for near in _near_pairs(bits, colours.astype(np.float32))
        for left, right in near.tolist()
    )
    roots = join(len(signatures), pairs)
    return [roots[place] for place in first]


def join(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The smallest of all numbers below `count` that pairs connect with each."""
    parent = list(range(count))

    def find(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for left, right in pairs:
        low, high = sorted((find(left), find(right)))
        parent[high] = low
    return [find(number) for number in range(count)]


def _near_pairs(
    bits: UInt64[np.ndarray, "n"], colours: Float32[np.ndarray, "n c"]
) -> Iterator[Int64[np.ndarray, "m 2"]]:
    """Pairs within both limits, some more than once.

    Only pictures are compared of which one band of bits is the same but for one bit: of random hashes a thousandth.
    """
    for band, flip in itertools.product(range(BANDS), (0, *(1 << bit for bit in range(BAND_BITS)))):
        values = ((bits >> np.uint64(BAND_BITS * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(values, kind="stable")
        first = np.searchsorted(values[order], values ^ flip, side="left")
        counts = np.searchsorted(values[order], values ^ flip, side="right") - first
        for start, end in _chunks(counts):
            left = np.repeat(np.arange(start, end), counts[start:end])
            ends = np.cumsum(counts[start:end])
            within = np.arange(len(left)) - np.repeat(ends - counts[start:end], counts[start:end])
            right = order[np.repeat(first[start:end], counts[start:end]) + within]
            is_near = (left < right) & (np.bitwise_count(bits[left] ^ bits[right]) <= MAX_DISTANCE)
            left, right = left[is_near], right[is_near]
            alike = np.einsum("mc,mc->m", colours[left], colours[right]) >= MIN_CORRELATION
            yield np.stack([left[alike], right[alike]], axis=1)


def _chunks(counts: Int64[np.ndarray, "n"]) -> Iterator[tuple[int, int]]:
    """Stretches of pictures that have about CHUNK candidates together."""
    chunk_of = (np.cumsum(counts) - counts) // CHUNK
    edges = [0, *(np.flatnonzero(np.diff(chunk_of)) + 1).tolist(), len(counts)]
    return itertools.pairwise(edges) if len(counts) else iter(())


@functools.cache
def _cosines() -> Float64[np.ndarray, "f s"]:
    """The lowest rows of the cosine transform (DCT-II)."""
    frequency, place = np.arange(FREQUENCIES)[:, None], np.arange(HASHED_SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * HASHED_SIDE))


def _normalize(colours: bytes) -> Float64[np.ndarray, "c"]:
    """Values with mean 0 and length 1: whether a picture is brighter, or has more contrast, makes no difference."""
    values = np.frombuffer(colours, dtype=np.uint8).astype(np.float64)
    values -= values.mean()
    return values / max(1e-6, float(np.linalg.norm(values)))

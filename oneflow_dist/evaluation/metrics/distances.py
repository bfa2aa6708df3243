"""How far the features of made pictures are from those of real ones: Fréchet's distance, and that of a kernel."""

# Shapes: n made pictures, m real ones, d features of each; r rank, s of a subset.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from oneflow_dist.evaluation.bootstrap import Measure

PARTS = (1, 2, 3, 4)  # into which sets are cut, to see how the bias grows
SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # as torch-fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDistance:
    """The mean over subsets, and how much a subset's differs from it."""

    measure: Measure
    std: float  # over subsets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Law:
    """The normal law of a set: (rows - mean) / sqrt(n - 1), whose square is the covariance, is basis @ root."""

    mean: Float64[np.ndarray, "d"]
    basis: Float64[np.ndarray, "n r"]
    root: Float64[np.ndarray, "r d"]


def measure_frechet(made: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]) -> Measure:
    """Between the normal laws of two sets of features; of Inception's it is FID. It is too large: `frechet_bias_note`.

        |mu - nu|^2 + tr(C + D - 2 (C D)^(1/2))

    The last trace is the sum of the singular values of A B', where C = A'A and D = B'B, so no root of a matrix is
    taken, and covariances may be singular. The interval is of its first derivative in the weight of each made picture:
    sets drawn with repetition would be as biased once more, and their figures lie above the figure itself.

    Raises:
        ValueError: fewer than two of either.
    Source: arXiv:1706.08500, Eq. 6.
    """
    _check(made, real, 2)
    ours, theirs = _fit(made), _fit(real)
    left, values, right = np.linalg.svd(ours.root @ theirs.root.T, full_matrices=False)
    centred, shift = ours.basis @ ours.root, ours.mean - theirs.mean
    squares = (centred**2).sum(1)
    value = float(shift @ shift + squares.sum() + (theirs.root**2).sum() - 2.0 * values.sum())
    shared = ((ours.basis @ (left @ right @ theirs.root)) * centred).sum(1)  # of each row in sum(values)
    slopes = 2.0 * np.sqrt(len(made) - 1) / len(made) * (centred @ shift) + squares - shared
    return measure_by_slopes(max(value, 0.0), len(made) * (slopes - slopes.mean()))


def measure_frechet_unbiased(made: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]) -> Measure:
    """Fréchet's distance of endless sets: where the line through those of smaller and smaller parts begins.

    Both sets are cut into 1, 2, 3 and 4 parts, every picture in one of them, so that the bias of both goes; the paper
    draws subsets of the made ones only. Good while a part has more pictures than features; it may be below 0.

    Raises:
        ValueError: a quarter of either set is no two pictures.
    Source: arXiv:1911.07023, section 3: the bias is linear in 1/n.
    """
    _check(made, real, 2 * PARTS[-1])
    rng = np.random.default_rng(SEED)
    ours, theirs = rng.permutation(made), rng.permutation(real)
    whole = measure_frechet(made, real)
    means = [_mean_frechet(ours, theirs, parts) for parts in PARTS[1:]]
    start = float(np.polyfit(PARTS, [whole.value, *means], 1)[1])
    return measure_by_slopes(start, whole.rows[:, 0] - whole.value)


def measure_by_slopes(value: float, slopes: Float64[np.ndarray, "n"]) -> Measure:
    """A figure that is no mean of items, with its derivative in the weight of each, times n: their mean is 0."""
    return Measure(rows=(value + slopes)[:, None], combine=_mean)


def frechet_bias_note(num_made: int, num_real: int, num_features: int) -> str:
    """What a report says beside Fréchet's distance: of how many pictures it is, and how far that is to be trusted."""
    note = f"{num_made} made and {num_real} real pictures, {num_features} features; biased upwards, as 1/pictures"
    if min(num_made, num_real) <= num_features:
        return f"{note}; covariances are singular: compare only with figures of as many pictures"
    return note


def measure_kernel(
    made: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m d"],
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> KernelDistance:
    """The squared distance of mean embeddings by the kernel (x.y / d + 1)^3, unbiased; of Inception's features, KID.

    Mean over subsets, which are those that torch-fidelity draws. Where both sets are no larger than a subset, there is
    one. The interval is of what each made picture adds to first order.

    Raises:
        ValueError: fewer than two of either.
    Source: arXiv:1801.01401, Eq. 4 and section 4.
    """
    _check(made, real, 2)
    size = min(subset_size, len(made), len(real))
    if size == len(made) == len(real):
        subsets = 1
    rng = np.random.RandomState(seed)  # the stream of torch-fidelity, for equal figures
    values, slopes, drawn = [], np.zeros(len(made)), np.zeros(len(made))
    for _ in range(subsets):
        chosen, others = (rng.choice(len(rows), size, replace=False) for rows in (made, real))
        value, adds = _mean_discrepancy(made[chosen].astype(np.float64), real[others].astype(np.float64))
        values.append(value)
        slopes[chosen] += adds
        drawn[chosen] += 1
    slopes /= drawn.clip(1)
    return KernelDistance(
        measure=measure_by_slopes(float(np.mean(values)), slopes - slopes.mean()), std=float(np.std(values))
    )


def _mean(rows: Float64[np.ndarray, "n 1"]) -> float:
    return float(rows.mean())


def _check(made: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], least: int) -> None:
    for name, rows in (("made", made), ("real", real)):
        if len(rows) < least:
            raise ValueError(f"{name}: {len(rows)} pictures are fewer than {least}; ask for more")


def _fit(rows: Float[np.ndarray, "n d"]) -> _Law:
    rows = rows.astype(np.float64)
    mean = rows.mean(0)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    if len(rows) <= rows.shape[1]:  # the rows themselves are as few as their rank
        return _Law(mean=mean, basis=np.eye(len(rows)), root=centred)
    basis, root = np.linalg.qr(centred)
    return _Law(mean=mean, basis=basis, root=root)


def _mean_frechet(made: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], parts: int) -> float:
    """Of sets that are one of `parts` of each."""
    return float(np.mean([measure_frechet(made[part::parts], real[part::parts]).value for part in range(parts)]))


def _mean_discrepancy(
    made: Float64[np.ndarray, "s d"], real: Float64[np.ndarray, "s d"]
) -> tuple[float, Float64[np.ndarray, "s"]]:
    """The squared distance of a subset, and the derivative of it in the weight of each made picture, times s."""
    num, width = made.shape

    def kernel(x: Float64[np.ndarray, "s d"], y: Float64[np.ndarray, "s d"]) -> Float64[np.ndarray, "s s"]:
        products = x @ y.T / width + 1.0
        return products * products * products  # a tenth of the time of a power

    def among(rows: Float64[np.ndarray, "s d"]) -> Float64[np.ndarray, "s"]:
        products = kernel(rows, rows)
        return (products.sum(1) - products.diagonal()) / (num - 1)

    ours, across = among(made), kernel(made, real).mean(1)
    value = ours.mean() + among(real).mean() - 2.0 * across.mean()
    return float(value), 2.0 * (ours - ours.mean() - across + across.mean())

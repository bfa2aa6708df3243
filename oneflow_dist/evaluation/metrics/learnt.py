"""A judge of small worlds: which words go with a picture, learnt from captioned pictures that the model has seen, too.

CLIP is not at hand everywhere, and a classifier of photos says little of drawings. A linear map from what a frozen
encoder sees to the words of captions is learnt in seconds from the training set; held-out pictures tell its worth.
"""

# Shapes: n pictures, c captions, d features, w words.

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64
from PIL import Image

from oneflow_dist.files import write_whole

JUDGE, WEIGHTS = "judge.json", "judge.safetensors"
LEAST_CAPTIONS = 5  # in which a word stands that the judge knows
PENALTIES = (1e1, 1e2, 1e3, 1e4)  # of the ridge; the best on a tenth of the captions is taken
Extract = Callable[[Sequence[Image.Image]], Float32[np.ndarray, "n d"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of captions, rare ones weighing more."""

    words: tuple[str, ...]
    weights: Float64[np.ndarray, "w"]

    @classmethod
    def of(cls, captions: Sequence[str]) -> Words:
        """Those of captions that stand in at least LEAST_CAPTIONS of them."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        words = tuple(sorted(word for word, count in counts.items() if count >= LEAST_CAPTIONS))
        return cls(words=words, weights=np.array([np.log(len(captions) / counts[word]) for word in words]))

    def read(self, captions: Sequence[str]) -> Float64[np.ndarray, "c w"]:
        """A vector of length 1 for each caption; 0 where no word is known."""
        place = {word: number for number, word in enumerate(self.words)}
        rows = np.zeros((len(captions), len(place)))
        for row, caption in zip(rows, captions, strict=True):
            known = [place[word] for word in split_words(caption) if word in place]
            row[known] = self.weights[known]
        return unit(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """Cosines of the words that a picture's features promise with those of captions; an `Aligner`."""

    sha256: str
    words: Words
    map: Float32[np.ndarray, "d w"]
    offset: Float32[np.ndarray, "w"]
    _extract: Extract = field(repr=False)

    @property
    def name(self) -> str:
        return "alignment (learnt words)"

    def compare(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Float64[np.ndarray, "n c"]:
        """Each caption's cosine less its mean over the pictures: some captions are near to everything."""
        promised = unit(self._extract(pictures).astype(np.float64) @ self.map + self.offset)
        cosines = promised @ self.words.read(captions).T
        return np.asarray(cosines - cosines.mean(0))

    def figures(self, own: Float64[np.ndarray, "n"]) -> dict[str, Float64[np.ndarray, "n"]]:
        """How much nearer a caption is to its picture than to the mean picture."""
        return {"learnt_words": own}


def learn_words(
    features: Float[np.ndarray, "n d"], captions: Sequence[str]
) -> tuple[Words, Float32[np.ndarray, "d w"], Float32[np.ndarray, "w"]]:
    """The ridge regression of the captions' vectors on features: words, map and offset.

    Raises:
        ValueError: too few captions, or no word stands in enough of them.
    """
    if len(captions) < 10 * LEAST_CAPTIONS:
        raise ValueError(f"captions: {len(captions)}, too few to learn from; give {10 * LEAST_CAPTIONS} or more")
    words = Words.of(captions)
    if not words.words:
        raise ValueError(f"captions: no word stands in {LEAST_CAPTIONS} of them; give more, or other ones")
    targets = words.read(captions)
    is_checked = np.arange(len(captions)) % 10 == 0
    scores = []
    for penalty in PENALTIES:
        map_, offset = _ridge(features[~is_checked], targets[~is_checked], penalty)
        promised = unit(features[is_checked] @ map_ + offset)
        scores.append(float((promised * targets[is_checked]).sum()))
    map_, offset = _ridge(features, targets, PENALTIES[int(np.argmax(scores))])
    return words, map_.astype(np.float32), offset.astype(np.float32)


def save_judge(
    folder: Path, words: Words, map_: Float32[np.ndarray, "d w"], offset: Float32[np.ndarray, "w"], encoder: str
) -> None:
    """Write a judge for `load_judge`.

    Args:
        encoder: whose features the map is of.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, save({"map": map_, "offset": offset, "weights": words.weights}))
    write_whole(folder / JUDGE, json.dumps({"encoder": encoder, "words": words.words}).encode())


def load_judge(folder: Path, device: str) -> Learnt:
    """What `save_judge` wrote.

    Raises:
        ValueError: damaged, or the encoder's package is missing.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from oneflow_dist.evaluation.metrics.features import load_extractor
    from oneflow_dist.model.autoencoder import hash_file

    try:
        table, arrays = json.loads((folder / JUDGE).read_bytes()), load((folder / WEIGHTS).read_bytes())
        words = Words(words=tuple(table["words"]), weights=arrays["weights"])
        parts = {"map": arrays["map"], "offset": arrays["offset"]}
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a whole judge ({error!r}); learn it again") from error
    extract = load_extractor(table["encoder"], device)
    return Learnt(sha256=hash_file(folder / WEIGHTS), words=words, _extract=extract, **parts)


def split_words(text: str) -> list[str]:
    """Words in small letters, each once."""
    return list(dict.fromkeys(re.findall(r"[^\W\d_]{2,}", text.lower())))


def unit(rows: Float[np.ndarray, "k w"]) -> Float64[np.ndarray, "k w"]:
    """Rows of length 1; those of length 0 stay."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _ridge(
    features: Float[np.ndarray, "n d"], targets: Float64[np.ndarray, "n w"], penalty: float
) -> tuple[Float64[np.ndarray, "d w"], Float64[np.ndarray, "w"]]:
    """Least squares with a penalty on the map, not on the offset."""
    x = features.astype(np.float64)
    mean, target_mean = x.mean(0), targets.mean(0)
    centred = x - mean
    gram = centred.T @ centred + penalty * np.eye(x.shape[1])
    map_ = np.linalg.solve(gram, centred.T @ (targets - target_mean))
    return map_, target_mean - mean @ map_

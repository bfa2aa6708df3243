"""METEOR of captions, by its authors' program: stems, synonyms and paraphrases are in no other.

The program says how words match; the score is made of that here, so that it can be made of any draw of items.
"""

# Shapes: n items.

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.captions import check_references
from oneflow_dist.evaluation.metrics.tokenizer import tokenize

PATIENCE = 120.0  # seconds to load its tables; 9 on a laptop
PATIENCE_PER_ITEM = 0.1
COUNTS = 23  # numbers it says of an item
KINDS = np.array([1.0, 0.6, 0.8, 0.6])  # weights of a match: the same word, stem, synonym, paraphrase
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # for English: of recall, of chunks, both, of content words


def measure_meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """METEOR 1.5 of raw captions, as COCO counts it.

    Args:
        references: of each candidate, one or more.

    Raises:
        ValueError: the package that brings the program, or Java, is not there; it failed, or took too long; or no item,
            an item without references, lists that do not belong together.

    Source: Denkowski and Lavie 2014, https://aclanthology.org/W14-3348.
    """
    check_references(candidates, references)
    if len(candidates) == 0:
        raise ValueError("meteor: no item; give at least one")
    asked = [_question(candidate, texts).encode() for candidate, texts in zip(candidates, references, strict=True)]
    said = _ask(_command(), b"".join(asked), PATIENCE + PATIENCE_PER_ITEM * len(asked)).decode().splitlines()
    rows = [[float(number) for number in line.split()] for line in said if not line.startswith("Error")]
    if len(rows) != len(asked) or any(len(row) != COUNTS for row in rows):
        raise ValueError(f"meteor: {len(asked)} items, but {len(rows)} answers ({said[-1:]}); is meteor-1.5.jar whole?")
    return Measure(rows=np.array(rows), combine=_score)


def _question(candidate: str, references: Sequence[str]) -> str:
    texts = [" ".join(tokenize(text)).replace("|||", "") for text in (*references, candidate)]
    return " ||| ".join(["SCORE", *texts]) + "\n"


def _command() -> list[str]:
    found = importlib.util.find_spec("pycocoevalcap")  # not imported: only its jar is of use
    folders = (found.submodule_search_locations if found is not None else None) or []
    jars = [jar for folder in folders if (jar := Path(folder) / "meteor" / "meteor-1.5.jar").exists()]
    if not jars:
        raise ValueError("meteor: pycocoevalcap is not installed; pip install --no-deps pycocoevalcap==1.2")
    java = shutil.which("java")
    if java is None:
        raise ValueError("meteor: java is not installed; apt-get install openjdk-17-jre-headless")
    options = ("-", "-", "-stdio", "-l", "en", "-norm")  # the first two: files, which it does not read then
    return [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jars[0]), *options]


def _ask(command: list[str], questions: bytes, seconds: float) -> bytes:
    """What the program answers; it has ended then, or is killed."""
    try:
        return subprocess.run(command, input=questions, capture_output=True, timeout=seconds, check=True).stdout
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"meteor: no answer within {seconds:.0f} s; is the machine busy, or short of memory?"
        ) from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="replace").split())[-300:]
        raise ValueError(f"meteor: java ended with code {error.returncode} ({said}); it needs 2 GB of memory") from None


def _score(rows: Float64[np.ndarray, "n 23"]) -> float:
    """(1 - penalty) P R / (alpha P + (1 - alpha) R), of sums over the items.

    In a row: words of candidate and reference; of these those of grammar; for each kind of match the matched words of
    content, then of grammar, candidate and reference each; chunks; matched words, candidate and reference. Chunks of
    items that match from end to end are not counted.
    """
    is_whole = (rows[:, 4:20].reshape(-1, 8, 2).sum(1) == rows[:, :2]).all(1) & (rows[:, 20] == 1.0)
    chunks, sums = float(rows[~is_whole, 20].sum()), rows.sum(0)
    lengths, of_grammar, matched = sums[:2], sums[2:4], sums[21:]
    if matched.min() == 0.0:
        return 0.0
    content, grammar = sums[4:20].reshape(4, 2, 2).swapaxes(0, 1)
    weighted = KINDS @ (DELTA * content + (1.0 - DELTA) * grammar)
    precision, recall = weighted / (DELTA * (lengths - of_grammar) + (1.0 - DELTA) * of_grammar)
    penalty = GAMMA * (chunks / matched.mean()) ** BETA
    return float((1.0 - penalty) * precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall))

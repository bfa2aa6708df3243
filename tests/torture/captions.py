"""Are the figures of captions those of COCO's own evaluation? Makes them anew with pycocoevalcap and compares.

    python tests/torture/captions.py            the file, the package and ours: a table of the largest differences
    python tests/torture/captions.py --write    puts what the package says into the file

Needs pycocoevalcap 1.2 (pip install --no-deps, 100 MB) and Java; a minute, 2 GB of memory. The captions are those of
tests/evaluation/metrics/captions_reference.json. The exit code is 1 if words differ, or a figure by more than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.captions import measure_captions
from oneflow_dist.evaluation.metrics.meteor import measure_meteor
from oneflow_dist.evaluation.metrics.tokenizer import tokenize
from oneflow_dist.runtime import run_program

FILE = Path(__file__).parents[1] / "evaluation" / "metrics" / "captions_reference.json"
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "meteor")
TOLERANCE = 1e-6
PLACES = 10  # decimal, in the file

Figures = dict[str, list[float]]  # of each name, that of the corpus, then those of its items


def main() -> None:
    """Entry point; code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="the package's words and figures into the file")
    args = parser.parse_args()
    os.environ["LC_ALL"] = "C.UTF-8"  # Java reads and writes in the encoding of the locale
    stored = json.loads(FILE.read_text())
    candidates = [item["candidate"] for item in stored["items"]]
    references = [item["references"] for item in stored["items"]]
    measures = measure_captions(candidates, references) | {"meteor": measure_meteor(candidates, references)}
    ours = {name: figures_of(measure) for name, measure in measures.items()}
    texts = [*candidates, *(text for group in references for text in group), *stored["words"]]
    words = dict(zip(texts, tokenize_theirs(texts), strict=True))
    theirs = measure_theirs(candidates, references, words)
    if args.write:
        write(stored, words, theirs)
        stored = json.loads(FILE.read_text())
    in_file = {name: [stored["figures"][name], *(item["figures"][name] for item in stored["items"])] for name in NAMES}
    other = sum(" ".join(tokenize(text)) != said for text, said in words.items())
    stale = sum(stored["words"].get(text) != said for text, said in words.items())
    print(
        f"{len(words)} texts: words of {other} differ from ours, of {stale} from the file\n\n{'':10} ours     the file"
    )
    largest = [compare(name, theirs[name], ours[name], in_file[name]) for name in NAMES]
    sys.exit(max(largest) > TOLERANCE or other > 0 or stale > 0)


def tokenize_theirs(texts: Sequence[str]) -> list[str]:
    """The words that the package's tokenizer makes of each text, with blanks between."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({place: [{"caption": text}] for place, text in enumerate(texts)})
    return [tokens[place][0] for place in range(len(texts))]


def measure_theirs(candidates: list[str], references: list[list[str]], words: dict[str, str]) -> Figures:
    """What the package's scorers say."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    said = {item: [words[text]] for item, text in enumerate(candidates)}
    right = {item: [words[text] for text in texts] for item, texts in enumerate(references)}
    corpus, items = Bleu(4).compute_score(right, said, verbose=0)
    figures = {name: [whole, *single] for name, whole, single in zip(NAMES[:4], corpus, items, strict=True)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider()), ("meteor", Meteor())):
        whole, single = scorer.compute_score(right, said)
        figures[name] = [whole, *single]
    return {name: [float(figure) for figure in all_of] for name, all_of in figures.items()}


def figures_of(measure: Measure) -> list[float]:
    """The value, then that of each item alone."""
    return [measure.value, *(measure.combine(row[None]) for row in measure.rows)]


def compare(name: str, theirs: list[float], *others: list[float]) -> float:
    """The largest difference, after a line of the table."""
    off = [max(abs(a - b) for a, b in zip(theirs, other, strict=True)) for other in others]
    print(f"{name:10} {'  '.join(f'{difference:.1e}' for difference in off)}   of {theirs[0]:.4f}", flush=True)
    return max(off)


def write(stored: dict[str, Any], words: dict[str, str], theirs: Figures) -> None:
    """What the package says, in place of what the file said."""
    stored["words"] = words
    stored["figures"] = {name: round(theirs[name][0], PLACES) for name in NAMES}
    for place, item in enumerate(stored["items"], 1):
        item["figures"] = {name: round(theirs[name][place], PLACES) for name in NAMES}
    FILE.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)

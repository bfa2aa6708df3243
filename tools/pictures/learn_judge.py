"""Learn a judge of pictures and captions from captioned pictures, for suites: `aligner = FOLDER`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from oneflow_dist.bars import bar
from oneflow_dist.modality import EFFICIENTNET
from oneflow_dist.runtime import run_program

BATCH = 64
SEEN_SIZE = 64  # pixels along a side, as those of the model that is judged


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the judge goes")
    parser.add_argument("shards", nargs="+", help="patterns of shards of pairs; those that the model is trained on")
    args = parser.parse_intermixed_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import numpy as np
    from PIL import Image

    from oneflow_dist.evaluation.metrics.features import load_extractor
    from oneflow_dist.evaluation.metrics.learnt import learn_words, save_judge
    from tools.shards import read_records

    extract = load_extractor(EFFICIENTNET, "cpu")
    features, captions, waiting = [], [], []
    for record in bar((r for pattern in args.shards for r in read_records(pattern)), unit="picture"):
        with Image.open(io.BytesIO(record.files["png"])) as picture:
            waiting.append(picture.convert("RGB").resize((SEEN_SIZE, SEEN_SIZE), Image.Resampling.LANCZOS))
        captions.append(record.files["txt"].decode())
        if len(waiting) == BATCH:
            features.append(extract(waiting))
            waiting = []
    features += [extract(waiting)] if waiting else []
    words, map_, offset = learn_words(np.concatenate(features), captions)
    save_judge(args.folder, words, map_, offset, EFFICIENTNET)
    print(f"wrote {args.folder}: {len(words.words)} words, from {len(captions)} captioned pictures")


if __name__ == "__main__":
    run_program(main)

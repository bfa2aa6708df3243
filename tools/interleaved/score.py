"""Score answers to the interleaved benchmark: text and images, their number, place, order, agreement, concurrency."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from oneflow_dist.evaluation.interleaved.parts import PARTS, score_part


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=Path, help="its folder")
    parser.add_argument("answers", type=Path, help="a folder with a folder of answers for each part that was asked")
    args = parser.parse_args()
    try:
        print(json.dumps(score_all(args.benchmark, args.answers), indent=2))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


def score_all(benchmark: Path, answers: Path) -> dict[str, Any]:
    """The figures of every part that was answered.

    Raises:
        ValueError: none was, or a file is missing or damaged.
    """
    found = [part for part in PARTS if (answers / part).is_dir()]
    if not found:
        raise ValueError(f"{answers}: none of the folders {', '.join(PARTS)}; README.md says what they hold")
    return {part: score_part(part, benchmark / part, answers / part) for part in found}


if __name__ == "__main__":
    main()

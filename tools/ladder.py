"""Score a suite on answers of growing quality, and see whether every figure puts them in their order.

Rungs are the answers of a trained model in another order ("shuffled"), those of models as they are named, from the
worst to the best, and the held-out data itself ("data").
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.runtime import run_program
from tools.ladders import BLIND, as_lines, draw

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oneflow_dist.evaluation.answers import Answer
    from oneflow_dist.evaluation.items import Item
    from oneflow_dist.evaluation.suite import Suite


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="TOML file")
    parser.add_argument("output", type=Path, help="folder for ladder.json and ladder.png")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="folders of oneflow evaluate, the best last")
    args = parser.parse_args()
    models = [model.partition("=") for model in args.models]
    for (name, _, folder), given in zip(models, args.models, strict=True):
        if not name or not folder:
            parser.error(
                f"{given!r} is not NAME=FOLDER, as trained=runs/quickstart/evaluation/quickstart/step-00000660"
            )
    folders = {name: Path(folder) for name, _, folder in models}
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch

    from oneflow_dist.evaluation.answers import read_answers
    from oneflow_dist.evaluation.report import ANSWERS, load_items
    from oneflow_dist.evaluation.rungs import shuffle, write_data
    from oneflow_dist.evaluation.suite import load_suite

    torch.set_num_threads(1)
    suite, best = load_suite(args.suite), [*folders][-1]
    table: dict[str, Any] = {}
    for name, items in load_items(suite).items():
        task = suite.task[name]
        rungs = {rung: read_answers(folder / ANSWERS / name) for rung, folder in folders.items()}
        rungs = {BLIND: shuffle(rungs[best]), **rungs}
        rungs["data"] = write_data(task, items, args.output / "data" / name)
        table[name] = score_rungs(suite, name, items, rungs)
    report = {"rungs": [*rungs], "tasks": table}
    (args.output / "ladder.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(args.output / "ladder.png", report)
    print("\n".join(as_lines(report)))
    print(f"wrote {args.output / 'ladder.json'} and {args.output / 'ladder.png'}")


def score_rungs(
    suite: Suite, name: str, items: Sequence[Item], rungs: Mapping[str, Sequence[Answer]]
) -> dict[str, dict[str, Any]]:
    """Each figure of a task by rung, with its interval."""
    from oneflow_dist.bars import bar
    from oneflow_dist.evaluation.report import describe_task
    from oneflow_dist.evaluation.scoring import match

    figures: dict[str, dict[str, Any]] = {}
    for rung, answers in bar(rungs.items(), desc=name, unit="rung"):
        asked = match(name, suite.task[name], suite.suite, items, answers)
        for figure, own in describe_task(asked)["figures"].items():
            figures.setdefault(figure, {})[rung] = own
    return figures


if __name__ == "__main__":
    run_program(main)

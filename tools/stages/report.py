"""Measure the small chain of stages and draw it on one page: report.json and report.png in its folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from oneflow_dist.commands.curves import curve, read_lines
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

STAGES = ("a_text", "b_images", "c_mixed", "d_instruct")
MOST_DRAWN = 100  # digits on request
TEXT = "configs/data/stages/a_text_heldout.yaml"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help=f"holds the run folders {', '.join(STAGES)}, as runs/stages")
    parser.add_argument("--questions", type=int, default=1000, help="the first of each held-out source (%(default)s)")
    args = parser.parse_args()
    check_range("--questions", args.questions, "[1, inf)")
    runs = {stage: read_lines(args.folder / stage) for stage in STAGES}
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.trained import load_model
    from tools.held_out import measure
    from tools.stages.judging import Speaker, answer_questions, describe_pictures, draw_pictures
    from tools.stages.page import draw_page

    share_cores(others=1)  # with whatever else runs here
    text = {}
    for stage in STAGES:
        model, config = load_model(args.folder / stage)
        text[stage] = measure(model, config, TEXT, args.questions)["text"]["text"]
    speaker = Speaker.of(model, config)  # of the last stage
    questions = answer_questions(speaker, args.questions)
    described, examples = describe_pictures(speaker, args.questions)
    drawn, pictures = draw_pictures(speaker, min(args.questions, MOST_DRAWN))
    report = {
        "steps": {stage: curve(lines, "loss")[0][-1] for stage, lines in runs.items()},
        "train_seconds": {stage: round(sum(curve(lines, "seconds")[1])) for stage, lines in runs.items()},
        "questions": questions,
        "requests": described | drawn,
        "text, nats a slot": text,
    }
    with naming(args.folder):
        (args.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_page(args.folder / "report.png", runs, report, examples + pictures)
    print(json.dumps(report, indent=2))
    print(f"wrote {args.folder / 'report.json'} and {args.folder / 'report.png'}")


if __name__ == "__main__":
    run_program(main)

"""Let trained models answer the questions of a mixture, and count the answers that are right, by source.

An answer is right that equals the one of the data, whatever the case, the blanks, and the marks around it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.evaluation.bootstrap import wilson
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.config import Config
    from oneflow_dist.containers import Sample
    from oneflow_dist.data.mixture import Source
    from oneflow_dist.data.tokenizer import Tokenizer

GROUP = 128  # questions that are answered together
MARKS = " \t\r\n.,;:!?\"'()[]"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="A line of JSON for each run and source: the part of the answers that is right with its 95 % interval "
        "(Wilson's), and how many answers ended because sampling.max_rows was reached.",
    )
    parser.add_argument("mixture", help="YAML file; a model sees of a picture what its source gives in `instruct`")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of checkpoints")
    parser.add_argument("--questions", type=int, default=500, help="the first of each source (%(default)s)")
    parser.add_argument("--blind", action="store_true", help="ask without pictures: what can be guessed")
    args = parser.parse_args()
    check_range("--questions", args.questions, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.bars import bar
    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.trained import load_model

    share_cores(others=1)  # with whatever else runs here
    sources = load_mixture(args.mixture)
    for run in bar(args.runs, unit="run"):
        model, config = load_model(run)
        for source in sources:
            samples = ask(config, source, args.questions, args.blind)
            report = {"run": str(run), "source": source.name, "blind": args.blind}
            print(json.dumps(report | judge(model, config, samples)), flush=True)


def ask(config: Config, source: Source, number: int, blind: bool) -> list[Sample]:
    """The first questions of a source, as training has them in the task `instruct`.

    Raises:
        ValueError: all are left out by filters, or an answer is no text alone.
    """
    from oneflow_dist.data.decoding import decode_record, list_pieces, read_fields
    from oneflow_dist.data.samples import make_sample
    from oneflow_dist.data.shards import open_shards
    from oneflow_dist.flow.noising import keyed_generator
    from oneflow_dist.modality import GIVEN

    shards, tokenizer = open_shards(source.name, source.shards, source.index), tokenizer_of(config)
    given, without, asked = source.given.get("instruct", GIVEN[0]), "pieces" if blind else "", []
    for index in range(len(shards)):
        record = shards.read(index)
        fields = read_fields(record)
        is_many = source.max_images is not None and len(list_pieces(record)) > source.max_images
        if is_many or not all(rule.passes(fields) for rule in source.filters):
            continue
        seen = without, given != GIVEN[0] and not blind
        document = decode_record(record, fields, "txt", source.reading, tokenizer, config.modality, *seen)
        rng, prompt = keyed_generator(0, 0, record.key), tokenizer.encode(source.prompt)
        sample = make_sample(document, "instruct", given, prompt, tokenizer, config.modality, rng)
        if sample.is_interleaved:
            raise ValueError(f"sample {record.key}: its answer holds a piece; only answers of text are compared")
        asked.append(sample)
        if len(asked) == number:
            break
    if not asked:
        raise ValueError(f"source {source.name}: no question is left by its filters or max_images; change those")
    return asked


def judge(model: Any, config: Config, samples: list[Sample]) -> dict[str, Any]:
    """How many of the answers are right, and between which bounds the part of right ones lies."""
    tokenizer = tokenizer_of(config)
    answers = answer(model, config, samples)
    expected = [tokenizer.decode(sample.tokens[sample.is_target].tolist()) for sample in samples]
    right = sum(normalize(given) == normalize(own) for (given, _), own in zip(answers, expected, strict=True))
    return {
        "questions": len(samples),
        "right": right / len(samples),
        "interval": wilson(right, len(samples)),
        "cut": sum(is_cut for _, is_cut in answers),
    }


def answer(model: Any, config: Config, samples: list[Sample]) -> list[tuple[str, bool]]:
    """What the model writes after each prompt, and whether it had no room to go on."""
    from oneflow_dist.canvas import blank_canvas, prompt_of
    from oneflow_dist.sampler import generate

    tokenizer, answers = tokenizer_of(config), []
    for first in range(0, len(samples), GROUP):
        prompts = [prompt_of(sample, config.modality) for sample in samples[first : first + GROUP]]
        canvases = [
            blank_canvas(prompt, tokenizer, config.modality, 0, first + number) for number, prompt in enumerate(prompts)
        ]
        generate(model, canvases, config, tokenizer)
        for canvas in canvases:
            answers.append((tokenizer.decode(canvas.tokens[canvas.born > 0].tolist()), canvas.hit_cap))
    return answers


def normalize(text: str) -> str:
    """Small letters, single blanks, no marks around it."""
    return " ".join(text.casefold().split()).strip(MARKS)


def tokenizer_of(config: Config) -> Tokenizer:
    """That of a run."""
    from oneflow_dist.data.tokenizer import load_tokenizer

    return load_tokenizer(config.data.tokenizer, config.modality)


if __name__ == "__main__":
    run_program(main)

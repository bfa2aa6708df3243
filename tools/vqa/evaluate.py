"""Let a trained model answer the questions of a mixture's first source, and count the answers that are right."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.config import Config
    from oneflow_dist.containers import Sample

GROUP = 128  # questions that are answered together


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mixture", help="YAML file; what its source gives of a picture the model sees")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of checkpoints")
    parser.add_argument("--questions", type=int, default=500, help="(%(default)s)")
    args = parser.parse_args()
    check_range("--questions", args.questions, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tqdm import tqdm

    from oneflow_dist.trained import load_model

    share_cores(others=1)  # with whatever else runs here
    for run in tqdm(args.runs, unit="run"):
        model, config = load_model(run)
        asked = ask(config, args.mixture, args.questions)
        answers = answer(model, config, [sample for sample, _ in asked])
        is_right = [given == right for given, (_, right) in zip(answers, asked, strict=True)]
        print(
            json.dumps({"run": str(run), "questions": len(asked), "right": sum(is_right) / len(is_right)}), flush=True
        )


def ask(config: Config, mixture: str, number: int) -> list[tuple[Sample, str]]:
    """The first questions of a source as samples of the task `instruct`, each with its right answer."""
    from oneflow_dist.data.decoding import decode_record, read_fields
    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.data.samples import make_sample
    from oneflow_dist.data.shards import open_shards
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.flow.noising import keyed_generator
    from oneflow_dist.modality import GIVEN

    source = load_mixture(mixture)[0]
    shards = open_shards(source.name, source.shards, source.index)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    given, asked = source.given.get("instruct", GIVEN[0]), []
    for index in range(min(number, len(shards))):
        record = shards.read(index)
        fields = read_fields(record)
        document = decode_record(
            record, fields, "txt", source.reading, tokenizer, config.modality, with_features=given != GIVEN[0]
        )
        rng = keyed_generator(0, 0, record.key)
        sample = make_sample(document, "instruct", given, [], tokenizer, config.modality, rng)
        asked.append((sample, str(fields[source.reading.answer])))
    return asked


def answer(model: Any, config: Config, samples: list[Sample]) -> list[str]:
    """What the model writes after each prompt."""
    from oneflow_dist.canvas import blank_canvas
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.sampler import generate

    tokenizer, answers = load_tokenizer(config.data.tokenizer, config.modality), []
    for first in range(0, len(samples), GROUP):
        group = samples[first : first + GROUP]
        prompts = [prompt_of(sample, config) for sample in group]
        canvases = [
            blank_canvas(prompt, tokenizer, config.modality, 0, first + number) for number, prompt in enumerate(prompts)
        ]
        generate(model, canvases, config, tokenizer)
        for canvas, prompt in zip(canvases, prompts, strict=True):
            answers.append(tokenizer.decode(canvas.tokens[1 + len(prompt) :].tolist()).strip())
    return answers


def prompt_of(sample: Sample, config: Config) -> list[Any]:
    """All of a sample that is no target, as `blank_canvas` takes it."""
    from oneflow_dist.data.codec import to_latent

    prompt: list[Any] = sample.tokens[~sample.is_target].tolist()
    for (kind, modality), pieces in zip(config.modality.items(), sample.pieces, strict=True):
        first = 0
        for token, grid, count in zip(pieces.token, pieces.grid.tolist(), pieces.num_patches, strict=True):
            prompt[token] = (kind, to_latent(pieces.patches[first : first + count], grid, modality))
            first += count
    return prompt[1:]


if __name__ == "__main__":
    run_program(main)

"""What a model of the chain answers to held-out questions, describes and draws, and how much of it is right."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.containers import Sample
from oneflow_dist.data.mixture import Source, load_mixture
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.evaluation.bootstrap import wilson
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from tools.digits.grammar import WORDS, read_caption
from tools.stages.pictures import read_digits
from tools.stages.shapes import COLOURS
from tools.vqa.evaluate import GROUP, ask, judge, normalize

QUESTIONS = "configs/data/stages/questions_heldout.yaml"  # sources whose answers are compared as they are
LEARNT = "configs/data/stages/questions.yaml"  # the same of training
DESCRIBED = "configs/data/stages/described_heldout.yaml"
GUESSED_FROM = 10_000  # questions of training
FEW_STEPS = 8  # of the sampler: enough for a few words; pictures take those of the config
COUNT = "count from two to four"
Example = tuple[list[np.ndarray], str, list[str | np.ndarray]]  # pictures and a question, and what was answered


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers."""

    model: OneFlow
    config: Config
    tokenizer: Tokenizer

    @classmethod
    def of(cls, model: OneFlow, config: Config) -> Speaker:
        """One with the tokenizer of its run."""
        return cls(model, config, load_tokenizer(config.data.tokenizer, config.modality))

    def in_few_steps(self) -> Speaker:
        """The same, for answers of a few words."""
        sampling = dataclasses.replace(self.config.sampling, steps=FEW_STEPS, guidance={})
        return dataclasses.replace(self, config=dataclasses.replace(self.config, sampling=sampling))

    def write(self, prompts: Sequence[Prompt]) -> list[Canvas]:
        """A finished answer to each prompt."""
        canvases = [
            blank_canvas(prompt, self.tokenizer, self.config.modality, 0, number)
            for number, prompt in enumerate(prompts)
        ]
        for first in range(0, len(canvases), GROUP):
            generate(self.model, canvases[first : first + GROUP], self.config, self.tokenizer)
        return canvases

    def ask(self, text: str) -> Prompt:
        """A question in words, up to where the assistant answers."""
        roles = self.tokenizer.role_of
        return [roles["user"], *self.tokenizer.encode(text), roles["assistant"]]

    def question(self, sample: Sample) -> str:
        """The text of what was asked, without pictures."""
        tokens = sample.tokens[~sample.is_target].tolist()[1:]
        special = {*self.tokenizer.piece_of.values(), *self.tokenizer.role_of.values()}
        return self.tokenizer.decode([token for token in tokens if token not in special])

    def expected(self, sample: Sample) -> str:
        """The answer of the data."""
        return self.tokenizer.decode(sample.tokens[sample.is_target].tolist())

    def answered(self, canvas: Canvas, prompt: Prompt) -> list[str | np.ndarray]:
        """Texts and latents after a prompt, in reading order."""
        latents = canvas.latents("image")
        parts = canvas.parts(self.tokenizer, after_prompt=sum(part is not ... for part in prompt))
        return [part if isinstance(part, str) else latents[part[1]] for part in parts]


def answer_questions(speaker: Speaker, number: int) -> dict[str, dict[str, Any]]:
    """For each source: right answers with the pictures, of the same model without them, and by the question alone."""
    speaker, found = speaker.in_few_steps(), {}
    learnt = {source.name: source for source in load_mixture(LEARNT)}
    for source in load_mixture(QUESTIONS):
        seen, blind = (ask(speaker.config, source, number, without) for without in (False, True))
        judged, guessed = (judge(speaker.model, speaker.config, samples) for samples in (seen, blind))
        found[source.name] = {**judged, "blind": guessed, "commonest": guess(speaker, learnt[source.name], seen)}
    return found


def guess(speaker: Speaker, source: Source, samples: list[Sample]) -> float:
    """The part that is right of answers that are the commonest of training to the same question, or else to any."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in ask(speaker.config, source, GUESSED_FROM, True):
        for question in (speaker.question(sample), ""):
            answers[question][normalize(speaker.expected(sample))] += 1
    right = 0
    for sample in samples:
        known = answers.get(speaker.question(sample), answers[""])
        right += known.most_common(1)[0][0] == normalize(speaker.expected(sample))
    return right / len(samples)


def describe_pictures(speaker: Speaker, number: int) -> tuple[dict[str, dict[str, Any]], list[Example]]:
    """Captions on request, and some to look at.

    Counted is how many name the digit or the colour of the data's caption, and how many of the former are one of the
    sentences that training has.
    """
    speaker, source = speaker.in_few_steps(), load_mixture(DESCRIBED)[0]
    samples = ask(speaker.config, source, number, False)
    prompts = [prompt_of(sample, speaker.config.modality) for sample in samples]
    canvases = speaker.write(prompts)
    right: dict[str, list[bool]] = {"digits named": [], "in a sentence": [], "colours named": []}
    shown: dict[str, list[Example]] = {"digits named": [], "colours named": [], "others": []}
    for sample, prompt, canvas in zip(samples, prompts, canvases, strict=True):
        answer, caption = speaker.answered(canvas, prompt), speaker.expected(sample)
        text = " ".join(part for part in answer if isinstance(part, str))
        kind = "others"
        if (digit := read_caption(caption)) is not None:
            kind = "digits named"
            right[kind].append(set(WORDS) & set(text.split()) == {WORDS[digit]})
            right["in a sentence"].append(read_caption(text) == digit)
        elif colour := next((word for word in COLOURS if caption.startswith(f"a {word} ")), None):
            kind = "colours named"
            right[kind].append(set(COLOURS) & set(text.split()) == {colour})
        shown[kind].append((canvas.latents("image"), speaker.question(sample), answer))
    counted = {kind: _count(found) for kind, found in right.items() if found}
    return counted, [example for kind in shown for example in shown[kind][:2]]


def draw_pictures(speaker: Speaker, number: int) -> tuple[dict[str, dict[str, Any]], list[Example]]:
    """Pictures on request: how many show the digit that was asked for, and some to look at."""
    digits = [place % 10 for place in range(number)]
    asked = [f"draw a handwritten {WORDS[digit]}" for digit in digits] + ["draw a red circle", COUNT]
    prompts = [speaker.ask(text) for text in asked]
    canvases = speaker.write(prompts)
    right = []
    for digit, canvas in zip(digits, canvases, strict=False):
        seen = read_digits(canvas.latents("image"))
        right.append(len(seen) == 1 and int(seen[0]) == digit)
    answers = [speaker.answered(canvas, prompt) for canvas, prompt in zip(canvases, prompts, strict=True)]
    examples: list[Example] = [([], text, answer) for text, answer in zip(asked, answers, strict=True)]
    return {"digits drawn": _count(right)}, examples[:3] + examples[-2:]


def _count(right: list[bool]) -> dict[str, Any]:
    return {"questions": len(right), "right": sum(right) / len(right), "interval": wilson(sum(right), len(right))}

"""Questions with pictures, and what a model answers: written freely, or the choice that it thinks the likeliest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from oneflow_dist.canvas import blank_canvas, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.containers import Document, PiecePart, Sample, TextPart
from oneflow_dist.data.conversations import PLACE, clean
from oneflow_dist.data.samples import make_sample
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.evaluation.likelihood import bound_text
from oneflow_dist.flow.noising import keyed_generator
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.photos import encode_photo
from oneflow_dist.process import process_of
from oneflow_dist.sampler import generate
from oneflow_dist.trained import load_model

SEED = 3  # of the instants at which bounds are looked at


@dataclass(frozen=True, slots=True)
class Question:
    """A text with pictures: each where it says `<image>`, if it does so as often as there are any; else in front."""

    text: str
    pictures: tuple[Image.Image | bytes, ...] = ()  # bytes: of a PNG, JPEG or WebP


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A model that is asked.

    With turns, a question is one of the user and its answer the next of the assistant, laid out as in the task
    `instruct`; without, an answer follows its question at once.
    """

    model: OneFlow
    config: Config  # its [sampling] says how answers are written, and what is seen of a picture
    tokenizer: Tokenizer
    has_turns: bool = True
    group: int = 32  # answers that are written together
    instants: int = 16  # at which the text of a choice is looked at

    def answer(self, questions: Sequence[Question], seed: int = 0, start: int = 0) -> list[str]:
        """What the model writes after each question, without blanks around it; nothing but text is kept.

        Args:
            seed: with its number the key of all noise of an answer.
            start: number of the first question.

        Raises:
            ValueError: a question leaves no room for an answer, or a picture cannot be read.
        """
        answers: list[str] = []
        for first in range(0, len(questions), self.group):
            canvases = []
            for index, question in enumerate(questions[first : first + self.group], start=start + first):
                prompt = prompt_of(self._lay_out(question, index), self.config.modality)
                canvas = blank_canvas(prompt, self.tokenizer, self.config.modality, seed, index)
                if canvas.num_rows >= self.config.sampling.max_rows:
                    raise ValueError(
                        f"question {index}: takes {canvas.num_rows} rows, of at most {self.config.sampling.max_rows} "
                        "with its answer; raise sampling.max_rows"
                    )
                canvases.append(canvas)
            for canvas in generate(self.model, canvases, self.config, self.tokenizer):
                is_text = (canvas.born > 0) & (canvas.tokens < self.tokenizer.bos)  # special ones come after all others
                answers.append(self.tokenizer.decode(canvas.tokens[is_text].tolist()).strip())
        return answers

    def bound(self, question: Question, answer: str) -> float:
        """Nats: an upper bound of -log p(answer | question), see `likelihood`.

        Of one question all answers are looked at with the same random numbers.

        Raises:
            ValueError: the answer is empty, or a picture cannot be read.
        """
        return self._bound(question, self._lay_out(question, 0), self._tokens(answer))

    def choose(self, question: Question, choices: Sequence[str], per_token: bool = False) -> int:
        """Which choice has the least bound; or the least for each of its tokens, so that long ones have a chance.

        Raises:
            ValueError: as `bound`.
        """
        front, texts = self._lay_out(question, 0), [self._tokens(choice) for choice in choices]
        bounds = [self._bound(question, front, text) / (len(text) if per_token else 1) for text in texts]
        return int(np.argmin(bounds))

    def _bound(self, question: Question, front: Sample, answer: list[int]) -> float:
        sample = replace(
            front,
            tokens=np.append(front.tokens, np.array(answer, dtype=np.int64)),
            is_target=np.append(front.is_target, np.ones(len(answer), dtype=bool)),
        )
        process = process_of(self.config, self.tokenizer.eos, self.tokenizer.mark)
        generators = [keyed_generator(SEED, instant, question.text) for instant in range(self.instants)]
        return bound_text(self.model, self.config, process, process.prepare(sample), generators)

    def _tokens(self, answer: str) -> list[int]:
        text = clean(answer).strip() if self.has_turns else answer
        if not text:
            raise ValueError(f"answer: {answer!r} is empty; only of a text there is a bound")
        return self.tokenizer.encode(text)

    def _lay_out(self, question: Question, index: int) -> Sample:
        """All that stands before the answer."""
        parts, task = self._parts(question, index), "answer" if self.has_turns else "interleaved"
        if self.has_turns or not parts:
            parts.append(TextPart(tokens=[], role="assistant"))
        rng = keyed_generator(0, 0, "question")  # nothing is drawn: pictures have no posterior here
        document = Document(key=f"question {index}", parts=tuple(parts))
        sample = make_sample(document, task, "latents", [], self.tokenizer, self.config.modality, rng)
        return replace(sample, is_target=np.zeros(len(sample.tokens), dtype=bool), is_interleaved=False)

    def _parts(self, question: Question, index: int) -> list[TextPart | PiecePart]:
        stretches = question.text.split(PLACE)
        if len(stretches) != len(question.pictures) + 1:
            stretches = [""] * len(question.pictures) + [question.text]
        parts = self._say(stretches[0])
        for number, (picture, text) in enumerate(zip(question.pictures, stretches[1:], strict=True)):
            name = f"question {index}, picture {number}"
            data = picture if isinstance(picture, bytes) else _encode(picture)
            for kind, latent in encode_photo(data, self.config, name, is_told=False):
                parts.append(PiecePart.exact(kind, latent))
            parts += self._say(text)
        return parts

    def _say(self, text: str) -> list[TextPart | PiecePart]:
        text = clean(text).strip() if self.has_turns else text
        return [TextPart(tokens=self.tokenizer.encode(text))] if text else []


def load_asker(path: str | Path, max_rows: int = 0, has_turns: bool = True, group: int = 32) -> Asker:
    """An asker of a checkpoint, or of the last one of a run folder.

    Args:
        max_rows: of a question with its answer, where `sampling.max_rows` of the run is another; 0: that.
        has_turns: false where the vocabulary of the model has no room for the tokens of turns, whatever is asked for.

    Raises:
        ValueError: there is no complete checkpoint, or it is damaged.
    """
    model, config = load_model(path)
    if max_rows:
        config = replace(config, sampling=replace(config.sampling, max_rows=max_rows))
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    has_turns = has_turns and max(tokenizer.role_of.values()) < config.model.vocab_size
    return Asker(model=model, config=config, tokenizer=tokenizer, has_turns=has_turns, group=group)


def _encode(picture: Image.Image) -> bytes:
    """As a PNG, so that it is seen as a file is; modes that PNG lacks become colours."""
    is_known = picture.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
    file = io.BytesIO()
    (picture if is_known else picture.convert("RGB")).save(file, format="PNG")
    return file.getvalue()

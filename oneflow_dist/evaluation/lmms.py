"""A checkpoint as a model of the harness lmms-eval, whose tasks then run on it as they are.

    lmms-eval --model oneflow --model_args pretrained=RUN --tasks mme --batch_size 32

Written for lmms-eval 0.7.3, which finds the model by the entry point `oneflow` of the group `lmms_eval.models`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from oneflow_dist.bars import bar
from oneflow_dist.evaluation.asking import Question, load_asker

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]
try:
    from lmms_eval.api.instance import GenerationResult, Instance  # type: ignore[import-not-found]
    from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
except ModuleNotFoundError as error:
    raise ValueError(f"oneflow_dist.evaluation.lmms: needs lmms-eval ({error}); pip install lmms-eval") from error


def manifest() -> ModelManifest:
    """What the harness looks the model up by."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="oneflow", simple_class_path=f"{__name__}.{OneFlowLmms.__name__}")


class OneFlowLmms(lmms):  # type: ignore[misc]
    """What the harness calls; the rest is `Asker`.

    How answers are written is [sampling] of the run; of a task's `generation_kwargs` only `until` is heeded, at which
    answers are cut. Videos and sounds are refused.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "",
        max_rows: int = 0,
        has_turns: bool = True,
        seed: int = 0,
    ):
        """Load the model.

        Args:
            pretrained: run folder (its last checkpoint), or one checkpoint's folder.
            batch_size: answers that are written together.
            device: "": a GPU, if there is one.
            max_rows: of a question with its answer; 0: `sampling.max_rows` of the run.
            has_turns: ask as in the task `instruct`; else an answer follows its question at once.
            seed: of the noise.

        Raises:
            ValueError: there is no complete checkpoint, or the batch size is no number.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"--batch_size: {batch_size!r} is no number from 1 on; write one, as 32")
        asker = load_asker(pretrained, max_rows, has_turns, int(batch_size))
        self.asker = replace(asker, model=asker.model.to(device)) if device else asker
        self.seed = seed

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.asker.model.parameters()).device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each."""
        answers: list[str] = []
        starts = range(0, len(requests), self.asker.group)
        for first in bar(starts, desc="answers", unit="group"):
            # Pictures of one group alone are in memory.
            own = [request.args for request in requests[first : first + self.asker.group]]
            questions = [self._question(context, *place) for context, _, *place in own]
            written = self.asker.answer(questions, self.seed, start=first)
            answers += [_cut(text, options) for text, (_, options, *_) in zip(written, own, strict=True)]
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds to each; a task says after each round what it asks next, or that it is done."""
        return [self._ask_rounds(*request.args) for request in bar(requests, desc="rounds", unit="question")]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The upper bound of -log p(continuation) of each, in nats; and false, as if it were not what is written.

        The harness takes the choice with the *least* value, since its models give losses. It turns a bare pair into
        text, but leaves alone what stands in a `GenerationResult`.
        """
        bars = bar(requests, desc="bounds", unit="text")
        return [GenerationResult(text=(self._bound(*request.args), False)) for request in bars]

    def _bound(self, context: str, continuation: Any, *place: Any) -> float:
        if callable(continuation):
            *_, number, task, split = place
            continuation = continuation(self.task_dict[task][split][number])
        return self.asker.bound(self._question(context, *place), continuation)

    def _question(self, context: str, *place: Any) -> Question:
        """With the pictures of its document; a choice without its question has no place."""
        if not place:
            return Question(context)
        look, number, task, split = place
        return Question(context, tuple(_pictures(look(self.task_dict[task][split][number]), f"{task}, {number}")))

    def _ask_rounds(
        self, context: str, options: dict[str, Any], look: Any, ask: Any, number: int, task: str, split: str
    ) -> list[str]:
        document, seen, said = self.task_dict[task][split][number], None, list[str]()
        pictures = look(document)
        while True:
            question = Question(context, tuple(_pictures(pictures, f"{task}, {number}")))
            (answer,) = self.asker.answer([question], self.seed + len(said), start=number)
            said.append(_cut(answer, options))
            pictures, context, is_done, said, seen = ask(
                document, previous_output=said, round_idx=len(said), previous_round_info=seen
            )
            said = list(said)
            if is_done:
                return said


def _pictures(visuals: Any, place: str) -> Iterator[Image.Image]:
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            raise ValueError(f"{place}: has a {type(visual).__name__}, but this model sees pictures; take another task")
        yield visual


def _cut(text: str, options: dict[str, Any]) -> str:
    """An answer before the first of the strings that end it."""
    until = options.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text

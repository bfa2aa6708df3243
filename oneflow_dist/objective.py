"""[objective]: what is learnt of text, and what of a config does not go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.toml import NonNegative, Share

Kind = Literal["insertion", "autoregressive", "masked"]
Sees = Literal["all", "prompt", "past"]  # which rows of its sequence a row sees


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """[objective] How text is learnt and written; pieces flow in all of them.

    "insertion" is OneFlow, "autoregressive" Transfusion (arXiv:2408.11039), "masked" LLaDA (arXiv:2502.09992).
    """

    kind: Kind = "insertion"
    # Of "autoregressive": the most noise that a piece is trained with where text comes after it, which could not tell
    # what it shows; or each has a clean copy behind it, which that text sees, and may have any noise.
    context_noise: Share = 0.5
    copies_pieces: bool = False
    # Of "masked": <|eos|> fills each text to a multiple of so many tokens, and a hole has so many at first; 0: texts
    # are as long as they are, and who generates has to tell how long.
    canvas_tokens: NonNegative = 0

    @property
    def inserts(self) -> bool:
        """Whether the model is asked if tokens are missing between others, and how many."""
        return self.kind == "insertion"

    @property
    def looks_back(self) -> bool:
        """Whether no row sees what stands behind it, but for the patches of one piece."""
        return self.kind == "autoregressive"


def check_objective(objective: ObjectiveConfig, prompt_sees: str, time_conditioning: str, bags: str) -> None:
    """Knobs that an objective has no use for.

    Raises:
        ValueError: names the keys, their values and a way out.
    """
    if objective.inserts:
        return
    kind = f'objective.kind is "{objective.kind}"'
    if time_conditioning != "none":
        raise ValueError(
            f'heads.time_conditioning: is "{time_conditioning}", but {kind}, whose text has no insertion heads; set it '
            'to "none"'
        )
    if bags != "sampled":
        raise ValueError(f'flow.bags: is "{bags}", but {kind}, which knows what is missing where; set it to "sampled"')
    if objective.looks_back and prompt_sees != "all":
        raise ValueError(
            f'model.prompt_sees: is "{prompt_sees}", but {kind}: every row sees its past alone; set it to "all"'
        )


def check_generation(objective: ObjectiveConfig, sampling: SamplingConfig) -> None:
    """Knobs of [sampling] that an objective cannot follow.

    Raises:
        ValueError: names the key, its value and a way out.
    """
    if objective.inserts:
        if sampling.canvas_tokens:
            raise ValueError(
                f'sampling.canvas_tokens: is {sampling.canvas_tokens}, but objective.kind is "insertion", which needs '
                "no length; set it to 0"
            )
        return
    unused = {
        "corrections": sampling.corrections,
        "clock_share": sampling.clock_share,
        "guidance.gate": sampling.guidance.get("gate"),
        "guidance.rate": sampling.guidance.get("rate"),
    }
    if objective.looks_back:
        unused |= {"blocks": sampling.blocks, "canvas_tokens": sampling.canvas_tokens}
    for key, value in unused.items():
        if value:
            raise ValueError(
                f'sampling.{key}: is {value}, but objective.kind is "{objective.kind}", which does not insert; leave '
                "it out"
            )

"""[sampling]: how documents are generated, and what of it cannot work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from oneflow_dist.modality import Given, Modalities
from oneflow_dist.toml import Decay, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Share, check_range

GUIDED_TEXT = ("gate", "rate", "tokens")  # beside modalities, what `sampling.guidance` may name
Firing = Literal["systematic", "independent"]
Solver = Literal["euler", "heun"]
WeakModel = Literal["unconditional", "entropy"]
Remasking = Literal["random", "low_confidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """[sampling] Pictures of what the model writes, during training and by default in oneflow sample."""

    every_steps: NonNegative  # 0: never during training
    steps: Positive  # N: the text is done after N steps, the last image after at most 2N
    # Text time after k steps is 1 - (1 - k / N) ** time_power; 1 as in the paper.
    time_power: Annotated[float, "[1, inf)"] = 1.5
    # Which slots get a token in a step, each with its chance: by one draw for all, after which neighbours rarely get
    # one together, or each for itself, as in the paper.
    firing: Firing = "systematic"
    # Of heads that know no time: how far the text time corrects what they say of missing tokens. 0, as in the paper:
    # texts grow with the number of steps.
    clock_share: Share = 0.0
    # How often a finished text is noised back to the time corrected_from and written on from there, pieces with it.
    corrections: NonNegative = 0
    corrected_from: Decay = 0.7
    # How far predictions go beyond those without their condition: of "gate" (is something missing?), "rate" (how much?)
    # and "tokens" (what?) beyond those without the prompt, of a modality's velocity beyond `weak_model`'s. What is not
    # named has 1, which is none; 0 is the other prediction.
    guidance: dict[str, float]
    guidance_from: Share = 0.0  # velocities are guided from this time of their piece
    guidance_until: Share = 1.0  # to this one
    # What velocities are compared with: the moving pieces alone ("unconditional"), or the whole document with attention
    # at weak_temperature ("entropy", arXiv:2504.13987), which nothing has to be trained for.
    weak_model: WeakModel = "unconditional"
    weak_temperature: PositiveFloat = 2.0
    # Of the pieces of a modality when the text is done, or there is none; what is not named has `steps`.
    piece_steps: dict[str, int] = field(default_factory=dict)
    solver: Solver = "euler"  # of velocities; heun takes one forward a step, too
    churn: NonNegativeFloat = 0.0  # noise that is exchanged on the way, of euler; 0: none
    shift: PositiveFloat = 1.0  # of the steps that pieces take when the text is done: above 1 more of them in the noise
    temperature: Annotated[float, "[1e-30, inf)"]  # of the token distribution; lower, logits would overflow
    top_k: NonNegative = 0  # draw from the k likeliest tokens; 0: from all
    top_p: Annotated[float, "(0, 1]"]
    max_rows: Positive  # of one document
    # A document is written in so many blocks at most, each after those before it, until <|eos|> comes; 0: as a whole.
    # Of a masked model: each hole from left to right, in so many equal parts.
    blocks: NonNegative = 0
    # Of a masked model: how long the text of a hole may be (0: objective.canvas_tokens), and which masks a step
    # replaces: any, each with the same chance, or those whose tokens are the most probable.
    canvas_tokens: NonNegative = 0
    remasking: Remasking = "low_confidence"
    given: Given = "latents"  # what the model sees of a given picture
    prompts: tuple[str, ...]  # in them a modality's token is a piece to make, "<|hole|>" a place to write text in

    def steps_after(self, text_time: float) -> float:
        """Of the text's grid, from this time on; whole on the grid itself."""
        return self.steps * (1.0 - text_time) ** (1.0 / self.time_power)

    def steps_of(self, kind: str) -> int:
        """That a piece of a modality takes when the text is done."""
        return self.piece_steps.get(kind, self.steps)


def check_sampling(sampling: SamplingConfig, modalities: Modalities, time_conditioning: str) -> None:
    """Weights of what is not there, and knobs that do not go together.

    Args:
        time_conditioning: of the insertion heads.

    Raises:
        ValueError: names the key, its value and a way out.
    """
    made = tuple(name for name, modality in modalities.items() if modality.is_target)
    for name, steps in sampling.piece_steps.items():
        if name not in made:
            raise ValueError(f"sampling.piece_steps.{name}: nothing that is generated; known are {', '.join(made)}")
        check_range(f"sampling.piece_steps.{name}", steps, "[1, inf)")
    known = (*GUIDED_TEXT, *made)
    for name, weight in sampling.guidance.items():
        if name not in known:
            raise ValueError(f"sampling.guidance.{name}: nothing that is generated; known are {', '.join(known)}")
        check_range(f"sampling.guidance.{name}", weight, "(-inf, inf)")
    if sampling.guidance_from > sampling.guidance_until:
        raise ValueError(
            f"sampling.guidance_from ({sampling.guidance_from}) is later than sampling.guidance_until "
            f"({sampling.guidance_until}); swap them"
        )
    if sampling.clock_share and time_conditioning != "none":
        raise ValueError(
            f"sampling.clock_share: is {sampling.clock_share}, but heads.time_conditioning is "
            f'"{time_conditioning}": these heads know the time; set it to 0'
        )
    if sampling.churn and sampling.solver != "euler":
        raise ValueError(
            f'sampling.churn: is {sampling.churn}, but sampling.solver is "{sampling.solver}"; set it to 0, or take '
            '"euler"'
        )

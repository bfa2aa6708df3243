"""Which noising process an objective has."""

from __future__ import annotations

from oneflow_dist.baselines.autoregressive import AutoRegressive
from oneflow_dist.baselines.masked import Masked
from oneflow_dist.config import Config
from oneflow_dist.flow.noising import Noising
from oneflow_dist.flow.process import Insertion, Process


def process_of(config: Config, eos: int, mark: int) -> Process:
    """That of [objective].

    Args:
        eos: the token that ends a text.
        mark: a token beyond the vocabulary.
    """
    objective, noising = config.objective, Noising.of(config)
    if objective.kind == "insertion":
        return Insertion(noising=noising)
    if objective.kind == "masked":
        return Masked(noising=noising, canvas_tokens=objective.canvas_tokens, eos=eos, mark=mark)
    return AutoRegressive(
        noising=noising,
        context_noise=objective.context_noise,
        copies_pieces=objective.copies_pieces,
        eos=eos,
        mark=mark,
    )

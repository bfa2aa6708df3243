"""One trunk under several objectives: a config as another objective can have it."""

from __future__ import annotations

from dataclasses import replace

from oneflow_dist.config import Config
from oneflow_dist.objective import Kind

OF_INSERTION = ("gate", "rate")  # what guidance may name of insertion heads alone


def with_objective(config: Config, kind: Kind) -> Config:
    """The same trunk by an objective, without what others alone can do; as it is where it has that objective."""
    if kind == config.objective.kind:
        return config
    sampling = replace(
        config.sampling,
        corrections=0,
        clock_share=0.0,
        blocks=0,
        canvas_tokens=0,
        guidance={name: weight for name, weight in config.sampling.guidance.items() if name not in OF_INSERTION},
    )
    return replace(
        config,
        objective=replace(config.objective, kind=kind),
        model=replace(config.model, prompt_sees="all"),
        heads=replace(config.heads, time_conditioning="none"),
        flow=replace(config.flow, bags="sampled"),
        # All tokens of a pack may have to be said, and each piece may have a copy.
        data=replace(config.data, bag_tokens_per_pack=config.data.rows_per_pack),
        sampling=sampling,
    )

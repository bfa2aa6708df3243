"""Settings of the sampler."""

from __future__ import annotations

from typing import Any

from oneflow_dist.sampling import SamplingConfig


def sampling(**changes: Any) -> SamplingConfig:
    """Ten even steps without guidance, but for `changes`."""
    plain = {"every_steps": 0, "prompts": (), "steps": 10, "time_power": 1.0, "guidance": {}}
    return SamplingConfig(**plain | {"temperature": 1.0, "top_p": 1.0, "max_rows": 99} | changes)

"""[sampling] as users see it: names with defaults and ranges, and values that a request has instead."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from oneflow_dist.config import RANGES, Config, check_config
from oneflow_dist.modality import GIVEN
from oneflow_dist.sampling import GUIDED_TEXT, SamplingConfig
from oneflow_dist.serving.orders import Limits
from oneflow_dist.toml import read_tables

NOT_ASKED = ("every_steps", "prompts")  # of training
TABLES = ("guidance", "piece_steps")  # a value for each name


def describe_settings(config: Config, limits: Limits) -> dict[str, dict[str, Any]]:
    """Every setting of a model by its name, with its default, type and range."""
    found: dict[str, dict[str, Any]] = {}
    largest = maxima(config, limits)
    for name, hint in get_type_hints(SamplingConfig, include_extras=True).items():
        default = getattr(config.sampling, name)
        if name in NOT_ASKED:
            continue
        if name in TABLES:
            made = [kind for kind, modality in config.modality.items() if modality.is_target]
            for key in [*GUIDED_TEXT, *made] if name == "guidance" else made:
                value = default.get(key, 1.0) if name == "guidance" else config.sampling.steps_of(key)
                own = _range("(-inf, inf)" if name == "guidance" else "[1, inf)", largest.get(name))
                kind = "number" if name == "guidance" else "integer"
                found[f"{name}.{key}"] = {"default": value, "type": kind, **own}
        elif get_origin(hint) is Literal or name == "given":
            choices = GIVEN if name == "given" else get_args(hint)
            found[name] = {"default": default, "type": "string", "choices": list(choices)}
        else:
            number = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            interval = RANGES["sampling"].get(name, "(-inf, inf)")
            kind = "integer" if number is int else "number"
            found[name] = {"default": default, "type": kind, **_range(interval, largest.get(name))}
    return found


def read_settings(values: dict[str, Any], config: Config, limits: Limits) -> SamplingConfig:
    """The model's [sampling] with what a request says instead.

    Args:
        values: by name; "guidance.image" is an entry of a table.

    Raises:
        ValueError: no such setting, or a value that it cannot have.
    """
    table = {**dataclasses.asdict(config.sampling), "prompts": [*config.sampling.prompts]}
    for name, value in values.items():
        key, _, entry = name.partition(".")
        if entry and key in TABLES:
            table[key] = {**table[key], entry: value}
        elif name in NOT_ASKED:
            raise ValueError(f"settings.{name}: is of training; leave it out")
        else:
            table[name] = value
    sampling: SamplingConfig = read_tables(SamplingConfig, table, "settings")
    try:
        check_config(dataclasses.replace(config, sampling=sampling))
    except ValueError as error:
        raise ValueError(str(error).replace("sampling.", "settings.")) from error
    for name, largest in maxima(config, limits).items():
        value = getattr(sampling, name)
        for own in value.values() if isinstance(value, dict) else [value]:
            if own > largest:
                raise ValueError(f"settings.{name}: {own} is more than this server allows, {largest}")
    return sampling


def maxima(config: Config, limits: Limits) -> dict[str, int]:
    """What this server allows of what could be as large as anyone likes."""
    return {
        "steps": max(limits.steps, config.sampling.steps),
        "piece_steps": max(limits.steps, *config.sampling.piece_steps.values(), 0),
        "corrections": max(limits.corrections, config.sampling.corrections),
        "blocks": max(limits.blocks, config.sampling.blocks),
        "canvas_tokens": max(limits.canvas_tokens, config.sampling.canvas_tokens),
        "max_rows": limits.max_rows or config.sampling.max_rows,
    }


def flat(sampling: SamplingConfig) -> dict[str, Any]:
    """Settings by their names, as a request has them."""
    values = {name: value for name, value in dataclasses.asdict(sampling).items() if name not in NOT_ASKED}
    tables = {f"{name}.{key}": own for name in TABLES for key, own in values.pop(name).items()}
    return {**values, **tables}


def _range(interval: str, largest: int | None) -> dict[str, float | int | None]:
    low, high = interval[1:-1].split(", ")
    ends = [None if "inf" in end else float(end) for end in (low, high)]
    return {"minimum": ends[0], "maximum": largest if largest is not None else ends[1]}

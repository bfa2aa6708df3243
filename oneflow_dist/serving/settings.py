"""[sampling] as users see it: names with defaults and ranges, and values that a request has instead."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from oneflow_dist.config import RANGES, Config, check_config
from oneflow_dist.modality import GIVEN
from oneflow_dist.sampling import GUIDED_TEXT, SamplingConfig
from oneflow_dist.serving.orders import Limits
from oneflow_dist.toml import read_tables

NOT_ASKED = ("every_steps", "prompts")  # of training
TABLES = ("guidance", "piece_steps")  # a value for each name
ANY = (-math.inf, math.inf)


def describe_settings(config: Config, limits: Limits) -> dict[str, dict[str, Any]]:
    """Every setting of a model by its name, with its default, type and range."""
    found: dict[str, dict[str, Any]] = {}
    allowed = allowed_ranges(config, limits)
    for name, hint in get_type_hints(SamplingConfig, include_extras=True).items():
        default = getattr(config.sampling, name)
        if name in NOT_ASKED:
            continue
        if name in TABLES:
            made = [kind for kind, modality in config.modality.items() if modality.is_target]
            for key in [*GUIDED_TEXT, *made] if name == "guidance" else made:
                value = default.get(key, 1.0) if name == "guidance" else config.sampling.steps_of(key)
                own = _range("(-inf, inf)" if name == "guidance" else "[1, inf)", allowed[name])
                kind = "number" if name == "guidance" else "integer"
                found[f"{name}.{key}"] = {"default": value, "type": kind, **own}
        elif get_origin(hint) is Literal or name == "given":
            choices = GIVEN if name == "given" else get_args(hint)
            found[name] = {"default": default, "type": "string", "choices": list(choices)}
        else:
            number = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            interval = RANGES["sampling"].get(name, "(-inf, inf)")
            kind = "integer" if number is int else "number"
            value = min(default, allowed[name][1]) if name == "max_rows" else default
            found[name] = {"default": value, "type": kind, **_range(interval, allowed.get(name, ANY))}
    return found


def read_settings(values: dict[str, Any], config: Config, limits: Limits) -> SamplingConfig:
    """The model's [sampling] with what a request says instead.

    Args:
        values: by name; "guidance.image" is an entry of a table.

    Raises:
        ValueError: no such setting, or a value that it cannot have.
    """
    allowed = allowed_ranges(config, limits)
    table = {**dataclasses.asdict(config.sampling), "prompts": [*config.sampling.prompts]}
    table["max_rows"] = min(config.sampling.max_rows, int(allowed["max_rows"][1]))
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
    for name, (least, most) in allowed.items():
        value = getattr(sampling, name)
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for entry, own in entries:
            if not least <= own <= most:
                where = f"{name}.{entry}" if entry else name
                side, end, word = ("more", most, "most") if own > most else ("less", least, "least")
                raise ValueError(f"settings.{where}: {own} is {side} than this server allows; take {end} at the {word}")
    return sampling


def allowed_ranges(config: Config, limits: Limits) -> dict[str, tuple[float, float]]:
    """What this server allows of what could be as large as anyone likes, or so far out that a forward overflows.

    A forward has many documents, and all are lost where it does.
    """
    own = config.sampling
    weight = max([limits.guidance, *map(abs, own.guidance.values())])
    return {
        "steps": (1, max(limits.steps, own.steps)),
        "piece_steps": (1, max([limits.steps, *own.piece_steps.values()])),
        "corrections": (0, max(limits.corrections, own.corrections)),
        "blocks": (0, max(limits.blocks, own.blocks)),
        "canvas_tokens": (0, max(limits.canvas_tokens, own.canvas_tokens)),
        "max_rows": (1, limits.max_rows or own.max_rows),
        "guidance": (-weight, weight),
        "weak_temperature": (min(limits.weak_temperature, own.weak_temperature), math.inf),
    }


def flat(sampling: SamplingConfig) -> dict[str, Any]:
    """Settings by their names, as a request has them."""
    values = {name: value for name, value in dataclasses.asdict(sampling).items() if name not in NOT_ASKED}
    tables = {f"{name}.{key}": own for name in TABLES for key, own in values.pop(name).items()}
    return {**values, **tables}


def _range(interval: str, allowed: tuple[float, float]) -> dict[str, float | None]:
    low, high = map(float, interval[1:-1].split(", "))
    ends = max(low, allowed[0]), min(high, allowed[1])
    return dict(zip(("minimum", "maximum"), (end if math.isfinite(end) else None for end in ends), strict=True))

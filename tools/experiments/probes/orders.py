"""Text and a picture that tell the same, made in three orders by one model with the same number of forwards.

The way "concurrent" writes and paints at once in N forwards. The two others take N / 2 for what comes first, from
nothing, and N / 2 for what is made of it. `kinds` of the probe names the world; its values are N.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.evaluation.metrics.diversity import nearest_pictures
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from oneflow_dist.trained import load_model
from tools.boards import grammar as boards
from tools.digits import grammar as digits
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject

SEED = 1000  # of what is drawn, with that of the run
PASSING = 0.99  # of held-out pictures are as near to what is known as a picture has to be
Label = tuple[Any, ...]  # what a text or a picture tells, attribute by attribute
Finish = Callable[
    [Sequence[Prompt], int, int], list[Canvas]
]  # of prompts, in so many forwards, from so many numbers on
Order = Callable[[Finish, int, int], list[Canvas]]


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """Who reads what a model of one kind of data makes."""

    attributes: tuple[str, ...]  # of a label with several parts, else none
    read_text: Callable[[str], Label | None]
    read_pictures: Callable[[Sequence[np.ndarray]], list[tuple[Label, bool]]]  # what each shows, and whether it is one


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """Shares of documents in each order, for each number of forwards, and the forwards that were counted.

    Raises:
        ValueError: a world that is not known, or forwards that cannot be halved.
    """
    world = find_world(probe)
    for forwards in probe.values:
        if forwards < 2 or forwards % 2:
            raise ValueError(f"probe.values: {forwards:g}: forwards are shared by two halves; name an even number")
    model, config = load_model(subject.folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    finish = functools.partial(finish_canvases, model, config, SEED + subject.seed)
    for forwards in probe.values:
        for name, order in ORDERS.items():
            stages = order(finish, probe.documents, int(forwards))
            texts, pictures = [], []
            for canvas in stages[-probe.documents :]:
                own = [part for part in canvas.parts(tokenizer) if isinstance(part, str)]
                texts.append(own[0] if len(own) == 1 else "")
                pictures.append(canvas.latents("image")[0])
            found = compare(texts, pictures, world)
            found["forwards"] = sum(canvas.num_steps for canvas in stages) / probe.documents
            yield from (Row(name, forwards, figure, value) for figure, value in found.items())


def find_world(probe: Probe) -> World:
    """That of the probe's kind.

    Raises:
        ValueError: there is none, or it is not known.
    """
    kind = probe.kinds[0] if probe.kinds else ""
    if kind not in WORLDS:
        raise ValueError(f"probe.kinds: {kind!r} is no world of orders; known are {', '.join(WORLDS)}")
    return WORLDS[kind]()


def finish_canvases(
    model: OneFlow, config: Config, seed: int, prompts: Sequence[Prompt], steps: int, first: int
) -> list[Canvas]:
    """Finished documents, unguided, as the config says otherwise; text and pictures take so many steps.

    Args:
        first: number of the first prompt, which with the seed is the key of all that is random about it.
    """
    sampling = dataclasses.replace(config.sampling, steps=steps, guidance={}, piece_steps={}, corrections=0)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    canvases = [
        blank_canvas(prompt, tokenizer, config.modality, seed, number) for number, prompt in enumerate(prompts, first)
    ]
    return generate(model, canvases, dataclasses.replace(config, sampling=sampling), tokenizer)


def make_together(finish: Finish, documents: int, forwards: int) -> list[Canvas]:
    """Text and picture at once."""
    return finish([[..., ("image", None)]] * documents, forwards, 0)


def write_first(finish: Finish, documents: int, forwards: int) -> list[Canvas]:
    """Text from nothing, then a picture of it; first all texts, then all documents."""
    written = finish([[]] * documents, forwards // 2, 0)
    painted = finish([[*canvas.as_prompt(), ("image", None)] for canvas in written], forwards // 2, documents)
    return written + painted


def paint_first(finish: Finish, documents: int, forwards: int) -> list[Canvas]:
    """A picture from nothing, then a text about it; first all pictures, then all documents."""
    painted = finish([[("image", None)]] * documents, forwards // 2, 0)
    return painted + finish([[*canvas.as_prompt(), ...] for canvas in painted], forwards // 2, documents)


ORDERS: dict[str, Order] = {"concurrent": make_together, "text first": write_first, "image first": paint_first}


def compare(texts: Sequence[str], pictures: Sequence[np.ndarray], world: World) -> dict[str, float]:
    """Shares of documents: text and picture tell the same; each is one that there can be; attributes agree."""
    told, seen = [world.read_text(text) for text in texts], world.read_pictures(pictures)
    pairs = [(label or (), sight) for label, (sight, _) in zip(told, seen, strict=True)]
    found = {
        "agreement": [label == sight for label, sight in pairs],
        "valid_text": [label is not None for label in told],
        "valid_image": [is_valid for _, is_valid in seen],
    }
    for place, name in enumerate(world.attributes):
        found[name] = [label[place : place + 1] == sight[place : place + 1] for label, sight in pairs]
    return {name: float(np.mean(values)) for name, values in found.items()}


def world_of_boards() -> World:
    """Boards, of which a reader knows all."""

    def read_pictures(latents: Sequence[np.ndarray]) -> list[tuple[Label, bool]]:
        return [(sight.label, sight.distance <= boards.FARTHEST) for sight in boards.read_pictures(latents)]

    return World(boards.ATTRIBUTES, boards.read_caption, read_pictures)


def world_of_digits() -> World:
    """Digits, read by a classifier; one is as near to a digit of training as most held-out digits are."""
    known, held_out = (flatten(digits.load_split(split)[0] / 127.5 - 1.0) for split in ("train", "heldout"))
    farthest = np.quantile(nearest_pictures(held_out, known).distance, PASSING)

    def read_pictures(latents: Sequence[np.ndarray]) -> list[tuple[Label, bool]]:
        near = nearest_pictures(np.clip(flatten(latents), -1.0, 1.0), known).distance <= farthest
        return [((int(digit),), bool(own)) for digit, own in zip(digits.read_images(latents), near, strict=True)]

    def read_text(text: str) -> Label | None:
        digit = digits.read_caption(text)
        return None if digit is None else (digit,)

    return World((), read_text, read_pictures)


def flatten(latents: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """A row of numbers for each."""
    return np.asarray(latents, dtype=np.float32).reshape(len(latents), -1)


WORLDS: dict[str, Callable[[], World]] = {"boards": world_of_boards, "digits": world_of_digits}

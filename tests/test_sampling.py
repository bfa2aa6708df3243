from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from oneflow_dist.config import Config
from oneflow_dist.modality import TAKEN_NAMES
from oneflow_dist.sampling import GUIDED_TEXT
from tests.messages import names, refused
from tests.modalities import SOUND, VISION
from tests.sampling import sampling

KNOWN = (*GUIDED_TEXT, "image")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("guidance={ gat = 2 }", ("sampling.guidance.gat", *KNOWN)),
        ("guidance={ image = 2, sound = 2 }", ("sampling.guidance.sound", *KNOWN)),
        ("guidance={ image = nan }", ("sampling.guidance.image", math.nan, "(-inf, inf)")),
        ("guidance={ gate = -inf }", ("sampling.guidance.gate", -math.inf, "(-inf, inf)")),
        ("clock_share=0.5", ("sampling.clock_share", 0.5, "heads.time_conditioning", '"adaln"', 0)),
        (
            "guidance_from=0.75 guidance_until=0.5",
            ("sampling.guidance_from", 0.75, "sampling.guidance_until", 0.5),
        ),
        ("solver=heun churn=0.5", ("sampling.churn", 0.5, "sampling.solver", '"heun"', 0, '"euler"')),
    ],
)
def test_what_does_not_go_together_is_named_with_its_keys_and_values(
    make_config: Callable[..., Config], override: str, named: tuple[object, ...]
) -> None:
    overrides = [override] if "{" in override else override.split()
    assert names(refused(make_config, *(f"sampling.{each}" for each in overrides)), *named)


def test_all_that_is_generated_may_be_guided_and_nothing_that_is_only_given(make_config: Callable[..., Config]) -> None:
    weights = "sampling.guidance={ gate = 0, rate = 1.5, tokens = -1, image = 2, NAME = 3 }"
    assert len(make_config(*SOUND, weights.replace("NAME", "sound")).sampling.guidance) == 5
    message = refused(make_config, *VISION, weights.replace("NAME", "vision"))
    assert names(message, "sampling.guidance.vision", *KNOWN)
    assert "vision" not in message.replace("guidance.vision", "")


def test_a_single_instant_may_be_guided(make_config: Callable[..., Config]) -> None:
    settings = make_config("sampling.guidance_from=0.5", "sampling.guidance_until=0.5").sampling
    assert settings.guidance_from == settings.guidance_until == 0.5


def test_no_modality_is_called_like_a_part_of_the_text_that_is_guided() -> None:
    assert set(GUIDED_TEXT) <= set(TAKEN_NAMES)


def test_pieces_take_as_many_steps_as_the_text_unless_told_otherwise() -> None:
    assert sampling(steps=7).steps_of("image") == 7
    own = sampling(steps=7, piece_steps={"image": 3})
    assert (own.steps_of("image"), own.steps_of("sound")) == (3, 7)


def test_steps_are_of_modalities_that_are_made(make_config: Callable[..., Config]) -> None:
    assert make_config(*SOUND, "sampling.piece_steps={ image = 3, sound = 9 }").sampling.steps_of("sound") == 9
    for entry, named in (
        ("vision = 3", ("sampling.piece_steps.vision", "image")),
        ("image = 0", ("sampling.piece_steps.image", 0)),
        ("image = 2.5", ("sampling.piece_steps.image", 2.5)),
    ):
        assert names(refused(make_config, *VISION, f"sampling.piece_steps={{ {entry} }}"), *named)

"""Orders go from one process to another."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.serving.orders import Hole, Latent, Limits, Make, Order, Picture, Text, Tokens, Turn


def test_an_order_reaches_another_process_as_it_is(config: Config) -> None:
    parts = (Text("a"), Hole(), Make("image"), Picture(b"b", 0.5), Tokens((1, 2)))
    order = Order(parts=parts, turns=(Turn("user", (Text("c"),)),), sampling=config.sampling, seed=3, follows="steps")
    assert pickle.loads(pickle.dumps(order)) == order
    latent = Latent("image", np.ones((1, 2), dtype=np.float32))
    again = pickle.loads(pickle.dumps(latent))
    assert (again.modality, again.latent.tobytes()) == (latent.modality, latent.latent.tobytes())


def test_every_limit_but_those_that_say_so_is_there_by_default() -> None:
    unlimited = {name for name, value in dataclasses.asdict(Limits()).items() if not value}
    assert unlimited == {"max_rows"}  # that of each model's config

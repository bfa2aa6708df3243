"""A judge of all scenes."""

from __future__ import annotations

import pytest

from oneflow_dist.evaluation.interleaved.judge import Judge
from tests.evaluation.interleaved.made_up import make_judge


@pytest.fixture(scope="session")
def judge() -> Judge:
    return make_judge()

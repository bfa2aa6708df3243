"""What all tests of contests do."""

from __future__ import annotations

import torch

from tools.benchmark.contest import Case, enter, time_in_turn
from tools.benchmark.report import Line


def run_case(case: Case, device: torch.device) -> list[Line]:
    """The last line of each contender."""
    return list({line["name"]: line for line in time_in_turn(case, enter(case, device), device)}.values())

from __future__ import annotations

import pytest
import torch

from tools.experiments.firing import with_rate
from tools.experiments.toys import predict


@pytest.mark.parametrize(("filled", "rate"), [(0.5, 0.2), (1.0, 0.01), (1.0, 3.0), (1e-9, 7.0)])
def test_any_rate_is_told_by_gate_and_rate_together(filled: float, rate: float) -> None:
    plain = predict([(0.0, 1.0, {"a": 1.0})])
    told = with_rate(plain, torch.tensor([filled]).double().log(), torch.tensor([rate]).double().log())
    assert told.zero_logit is not None
    assert told.log_rate is not None
    assert (told.log_rate >= 0.0).all()
    for q in (0.01, 0.3, 1.0):
        chance = torch.sigmoid(-told.zero_logit.double()) * (q * told.log_rate.exp()).clamp(max=1.0)
        assert chance.item() == pytest.approx(filled * min(1.0, q * rate), rel=1e-5)

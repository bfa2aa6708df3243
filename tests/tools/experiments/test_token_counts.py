from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.trained import load_model
from tools.experiments import token_counts
from tools.experiments.token_counts import ease, frequency, measure_once, read_texts

TEXTS = [(1.0, [(5, 0), (6, 5), (6, 6)]), (1.0, [(5, 0)])]  # 5 6 6, and 5, each after 0


def test_a_frequency_is_the_share_of_all_tokens() -> None:
    np.testing.assert_allclose(frequency(TEXTS, 8), [0, 0, 0, 0, 0, 0.5, 0.5, 0])
    np.testing.assert_allclose(frequency([(3.0, [(1, 0)]), (1.0, [(2, 0)])], 3), [0, 0.75, 0.25])


def test_ease_is_the_mean_log_probability_after_the_token_before() -> None:
    """5 follows 0 twice in two: (2 + .5) / (2 + 1). 6 follows 5 once in one and 6 once in one: (1 + .5) / (1 + 1)."""
    found = ease(TEXTS, 8)
    assert found[5] == pytest.approx(np.log2(2.5 / 3.0))
    assert found[6] == pytest.approx(np.log2(1.5 / 2.0))
    assert found[7] == -np.inf


def test_the_text_of_a_mixture_is_counted_once_in_a_process(
    styled: Path,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, config = load_model(runs / "timeless")
    monkeypatch.setattr(token_counts, "_found", {})
    shares = measure_once(frequency, config)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    assert shares.argmax() in (tokenizer.encode("a")[0], tokenizer.encode(" edge")[0])
    assert shares[tokenizer.bos] == 0.0
    assert sum(weight for weight, _ in read_texts(config)) == pytest.approx(1.0)
    monkeypatch.setattr(token_counts, "read_texts", None)
    assert measure_once(frequency, config) is shares

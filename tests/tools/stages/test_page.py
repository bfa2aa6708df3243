from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.stages.page import draw_page

CURVE = {"step": [1.0, 2.0, 3.0], "loss": [3.0, 2.0, 1.0]}
FOUND = {"questions": 4, "right": 0.5, "interval": (0.15, 0.85)}


def test_a_page_is_drawn_of_any_number_of_stages_and_examples(tmp_path: Path) -> None:
    """With and without validation, given pictures and pictures in answers, and answers of words alone."""
    curves = {
        "a_text": CURVE,
        "b_images": CURVE | {"validation_ema/text/loss": [1.5], "validation_ema/text/loss/step": [3.0]},
    }
    report = {
        "questions": {"rows": {**FOUND, "blind": FOUND, "commonest": 0.25}},
        "requests": {"digits drawn": FOUND},
        "text, nats a slot": {"a_text": 1.0, "b_images": 2.0},
    }
    latent = np.zeros((3, 16, 16), np.float32)
    examples = [
        ([latent, latent], "which?", ["seven"]),
        ([], "draw", ["a", latent]),
        ([], "say", ["words"]),
        ([], "", []),
    ]
    draw_page(tmp_path / "report.png", curves, report, examples)
    with Image.open(tmp_path / "report.png") as page:
        assert page.width > 1000

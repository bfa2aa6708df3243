from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.stages.page import draw_page

LINES = [{"step": step, "loss": 4.0 - step, "seconds": 0.1} for step in (1, 2, 3)]
FOUND = {"questions": 4, "right": 0.5, "interval": (0.15, 0.85)}


def test_a_page_is_drawn_of_any_number_of_stages_and_examples(tmp_path: Path) -> None:
    """With and without validation, given pictures and pictures in answers, and answers of words alone."""
    held_out = {"step": 3, "validation/text/loss": 1.6, "validation_ema/text/loss": 1.5}
    runs = {"a_text": LINES, "b_images": [*LINES, held_out]}
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
    draw_page(tmp_path / "report.png", runs, report, examples)
    with Image.open(tmp_path / "report.png") as page:
        assert page.width > 1000

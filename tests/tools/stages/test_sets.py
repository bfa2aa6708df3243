from __future__ import annotations

import json
from pathlib import Path

from tests.tars import samples_of


def test_statements_hold_three_boxes_and_the_last_shard_is_held_out(made: Path) -> None:
    for split, shard in (("train", 0), ("heldout", 1)):
        for files in samples_of(*made.glob(f"nlvr-{split}-*.tar")):
            asked, answer = json.loads(files["json"])["messages"]
            assert [part["type"] for part in asked["content"]] == ["image", "image", "image", "text"]
            assert asked["content"][-1]["text"].startswith(f"is this true? statement {shard} ")
            assert answer["content"] in ("true", "false")


def test_held_out_questions_stand_by_themselves(made: Path) -> None:
    for name in ("vqa", "rows"):
        for files in samples_of(*made.glob(f"{name}-heldout-*.tar")):
            roles = [message["role"] for message in json.loads(files["json"])["messages"]]
            assert [role for role in roles if role != "system"] == ["user", "assistant"]

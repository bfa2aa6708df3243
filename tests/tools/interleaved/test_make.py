from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.scenes import COUNTING, STORIES, read_scene
from tests.evaluation.interleaved.made_up import ICONS
from tests.launching import run_main
from tests.messages import naming
from tests.tars import samples_of
from tests.tools.interleaved.made_up import write_emoji, write_sections
from tools.digits.grammar import WORDS, load_split
from tools.interleaved import make as program

Make = Callable[..., Path]


def items_of(folder: Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "benchmark" / part / "items.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(files: dict[str, bytes]) -> tuple[str, list[str], list[Image.Image]]:
    """Prompt, texts and pictures of a conversation."""
    prompt, *rest = json.loads(files["json"])["segments"]
    assert [segment["type"] for segment in rest] == ["text", "image"] * (len(rest) // 2)
    assert (prompt["role"], {segment["role"] for segment in rest}) == ("user", {"assistant"})
    pictures = [Image.open(io.BytesIO(files[segment["image"]])).convert("RGB") for segment in rest[1::2]]
    return prompt["text"], [segment["text"] for segment in rest[::2]], pictures


def test_a_folder_holds_the_benchmark_shards_and_the_vocabulary(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        *("benchmark", "stories-heldout-000000.tar", "stories-train-000000.tar", "words.tiktoken")
    ]
    assert sorted(path.name for path in (made / "benchmark").iterdir()) == [
        *("LICENSE", "README.md", "counting", "figures", "oneflow_dist", "score.py", "stories")
    ]
    tokenizer = load_tokenizer(str(made / "words.tiktoken"))
    assert tokenizer.decode(tokenizer.encode("first one red fish")) == "first one red fish"


def test_the_same_seed_writes_the_same_bytes_again_over_what_was_there(made: Path, make: Make, tmp_path: Path) -> None:
    stale = make(tmp_path, "--seed=1")
    other = files_of(stale)
    (stale / "benchmark/stories/labelled/one_red_fish/9.png").write_bytes(b"stale")
    assert files_of(make(stale)) == files_of(made)
    assert {name for name, content in files_of(made).items() if other.get(name) != content} >= {
        *("benchmark/stories/items.jsonl", "stories-heldout-000000.tar", "stories-train-000000.tar")
    }


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_conversations_tell_the_story_that_was_asked_for(split: str, made: Path) -> None:
    judge = Judge.of(made / "benchmark/stories/labelled")
    samples = samples_of(made / f"stories-{split}-000000.tar")
    assert len(samples) == {"train": 24, "heldout": 6}[split]
    for files in samples:
        _, texts, pictures = told(files)
        assert [read_scene(text) for text in texts] == judge.read(pictures)


def test_no_story_that_is_asked_for_was_trained_on(made: Path) -> None:
    asked = {item["prompt"]: item["scenes"] for item in items_of(made, "stories")}
    prompts = {
        split: {told(files)[0] for files in samples_of(made / f"stories-{split}-000000.tar")}
        for split in ("train", "heldout")
    }
    assert {f"<|user|>{prompt}<|assistant|>" for prompt in prompts["heldout"]} == {*asked}
    assert not prompts["train"] & prompts["heldout"]


def test_stories_that_are_held_out_are_drawn_anew(tmp_path: Path) -> None:
    def prompts(*held_out: str) -> list[str]:
        program.write_training(tmp_path, ICONS, 24, held_out, 0)
        return [told(files)[0] for files in samples_of(tmp_path / "stories-train-000000.tar")]

    drawn = prompts()
    without = prompts(*drawn[::2])
    assert len(without) == 24
    assert not {*without} & {*drawn[::2]}


def test_the_truth_of_a_story_answers_its_item(made: Path) -> None:
    items = {item["prompt"]: item for item in items_of(made, "stories")}
    for files in samples_of(made / "stories-heldout-000000.tar"):
        prompt, texts, _ = told(files)
        labels = [label for label in map(read_scene, texts) if label is not None]
        assert STORIES.accepts(labels, items[f"<|user|>{prompt}<|assistant|>"])


def test_the_judge_knows_every_picture_of_every_scene(made: Path) -> None:
    judge = Judge.of(made / "benchmark/stories/labelled")
    assert (len(judge.labels), len(set(judge.labels)), judge.size) == (420, 90, (16, 16))
    assert len(np.unique(judge.pixels, axis=0)) == 420


def test_the_judge_of_counting_knows_the_digits_of_the_training_split(made: Path) -> None:
    judge = Judge.of(made / "benchmark/counting/labelled")
    images, labels = load_split("train")
    assert len(judge.labels) == len(images)
    assert judge.read([Image.fromarray(image) for image in images[:50]]) == [WORDS[label] for label in labels[:50]]
    heldout, truth = load_split("heldout")
    read = judge.read([Image.fromarray(image) for image in heldout])
    assert np.mean([WORDS[label] == sight for label, sight in zip(truth, read, strict=True)]) > 0.97


def test_counting_asks_the_same_many_times(made: Path) -> None:
    items = items_of(made, "counting")
    assert [item["key"] for item in items] == [f"{number:04d}" for number in range(6)]
    assert {(item["prompt"], item["longest"]) for item in items} == {("count up:", 10)}
    assert COUNTING.accepts(["one", "two"], items[0])


def test_the_own_figure_comes_first_before_seven_others_of_the_same_book(made: Path) -> None:
    items = items_of(made, "figures")
    assert len(items) == 6
    for item in items:
        assert item["pictures"][0] == f"pictures/{item['key']}.jpg"
        assert item["choices"][0] == item["caption"] == item["references"][0]
        assert len(set(item["pictures"])) == len(set(item["choices"])) == 8
        assert all(name.startswith("pictures/large-") for name in item["pictures"])
        assert all((made / "benchmark/figures" / name).is_file() for name in item["pictures"])
    assert len({tuple(sorted(item["pictures"])) for item in items}) > 1


def test_items_are_lists_that_a_suite_reads(made: Path) -> None:
    for part in ("counting", "stories", "figures"):
        keys = [item["key"] for item in items_of(made, part)]
        assert len(keys) == len(set(keys)) == 6
        assert all(item["prompt"] for item in items_of(made, part))


def test_without_a_book_of_enough_figures_nothing_can_be_chosen(tmp_path: Path) -> None:
    sections = write_sections(tmp_path)
    (tmp_path / "figures").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "CHOICES", 10)
        with pytest.raises(ValueError, match=naming("--sections", sections, 10)):
            program.write_figures(tmp_path / "figures", sections, 6)


@pytest.mark.parametrize("argument", ["--stories=0", "--items=0", "--seed=-1"])
def test_numbers_out_of_range_are_refused(argument: str, tmp_path: Path) -> None:
    name, _, value = argument.partition("=")
    sources = ["--emoji", write_emoji(tmp_path), "--sections", write_sections(tmp_path)]
    with pytest.raises(ValueError, match=naming(name, value)):
        run_main(program, tmp_path / "made", *sources, argument)
    assert not (tmp_path / "made").exists()

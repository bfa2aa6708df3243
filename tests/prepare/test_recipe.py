from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.config import load_config
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.prepare.recipe import (
    GENEROUS,
    Images,
    choose_prompts,
    count_kinds,
    default_vocab_size,
    write_config,
    write_mixture,
)
from oneflow_dist.prepare.samples import Sample
from oneflow_dist.prepare.shards import HELD_OUT, TRAIN, ShardPlan, plan_shards
from tests.prepare.prepared import a_sample, options

IMAGES = Images(channels=3, shape=(32, 32), patch=(4, 4), codec="pixels")


def plans(*samples: Sample) -> list[ShardPlan]:
    return plan_shards([((sample, lambda _: b""), number % 4 == 3) for number, sample in enumerate(samples)])


def test_a_mixture_names_all_shards_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneflow_dist.prepare.shards.MAX_SAMPLES", 2)
    texts = [a_sample(50 + n, "texts", [], turns=(("", ("a",)),)) for n in range(4)]
    all_plans = plans(*(a_sample(n) for n in range(8)), *texts)
    assert count_kinds(all_plans, TRAIN) == {"pairs": 6, "texts": 3}
    path = tmp_path / "mixture.yaml"
    path.write_text(write_mixture(tmp_path / 'odd "name" {a,b}', all_plans, TRAIN, 2))
    pairs, other = load_mixture(str(path))
    assert (pairs.name, pairs.weight, pairs.tasks) == ("pairs", 6, {"text_to_image": 3, "image_to_text": 1, "both": 1})
    assert pairs.shards == f'{tmp_path}/odd "name" {{a,b}}/pairs-train-{{000000..000002}}.tar'
    assert pairs.captions == {"txt": 1, "caption_2": 1}
    assert (other.name, other.weight, other.tasks, other.captions) == ("texts", 3, {"text_only": 1}, {"txt": 1.0})
    path.write_text(write_mixture(tmp_path, all_plans, HELD_OUT, 1))
    assert [source.weight for source in load_mixture(str(path))] == [2, 1]


def test_a_config_is_one_that_loads(tmp_path: Path) -> None:
    own = options(tmp_path / "in", tmp_path / 'o"ut', seed=3, name="mine")
    path = tmp_path / "config.toml"
    path.write_text(write_config(own, IMAGES, 520, "bytes", ['a "b"<|image|>'], GENEROUS, "drop", True))
    config = load_config(path)
    assert (config.run.folder, config.run.seed, config.model.vocab_size) == ("runs/mine", 3, 520)
    assert (config.modality["image"].shape, config.modality["image"].patch) == ((32, 32), (4, 4))
    assert (config.data.mixture, config.validation.mixture) == (
        f"{own.output}/mixture.yaml",
        f"{own.output}/heldout.yaml",
    )
    assert (config.train.steps, config.data.overlong) == (1000, "drop")
    assert config.sampling.prompts == ('a "b"<|image|>',)
    wide = {**GENEROUS, "data.rows_per_pack": 2048}
    path.write_text(write_config(own, IMAGES, 520, "bytes", [""], wide, "error", False))
    assert (load_config(path).train.steps, load_config(path).validation.mixture) == (500, "")


def test_prompts_are_short_captions_spread_over_the_samples() -> None:
    samples = [a_sample(number, captions=(f"{number}" * (100 if number % 2 else 1),)) for number in range(100)]
    samples.append(a_sample(100, captions=("<|image|>",)))
    assert choose_prompts(samples) == [f"{number}<|image|>" for number in (12, 36, 62, 86)]
    assert choose_prompts([a_sample(1, captions=("x" * 100,))]) == ["x" * 100 + "<|image|>"]
    assert choose_prompts([a_sample(1, "pictures")]) == ["<|image|>"]
    assert choose_prompts([a_sample(1, "texts", [], turns=(("", ("a",)),))]) == [""]


def test_little_text_has_a_small_vocabulary() -> None:
    assert [default_vocab_size(size) for size in (0, 60_000, 600_000, 10**7)] == [512, 1024, 2048, 4096]

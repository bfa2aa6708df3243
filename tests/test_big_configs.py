"""The shapes of the big configs, with a narrow model of one layer: the loader, the packer, a step and the sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.flow.losses import are_finite, compute_losses
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from tests.tars import npy, write_tar

CPU = torch.device("cpu")
CONFIGS = (
    *("oneflow_1b", "oneflow_3b", "oneflow_8b", "oneflow_30b"),
    *("transfusion_1b", "transfusion_8b", "masked_1b", "masked_8b"),
)
NARROW = (
    *("model.width=32", "model.num_layers=1", "model.num_attention_heads=4", "model.num_kv_heads=2"),
    *("model.mlp_width=32", "model.vocab_size=512", "data.tokenizer=bytes", "data.workers=0", "data.packs_per_step=1"),
    *("data.window_samples=128", "train.precision=fp32", "train.compile=false"),
)
CAPTION = b"two cats on a red sofa, one of them asleep, and behind the sofa a window with rain on it: " * 2


def tasks_of(name: str, root: Path) -> list[str]:
    """Those of all sources of a config's mixture."""
    mixture = yaml.safe_load((root / load_config(root / "configs" / f"{name}.toml").data.mixture).read_text())
    return sorted({task for source in mixture["sources"].values() for task in source["tasks"]})


ROOT = Path(__file__).parents[1]
CASES = [(name, task) for name in CONFIGS for task in tasks_of(name, ROOT)]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned latents of 256x256 pictures, captions of 60 to 180 bytes."""
    rng = np.random.default_rng(0)
    members = {}
    for number in range(400):
        posterior = np.abs(rng.standard_normal((2, 16, 32, 32), dtype=np.float32))
        members[f"{number:03d}.npy"] = npy(posterior, "<f2")
        members[f"{number:03d}.txt"] = CAPTION[: int(rng.integers(60, len(CAPTION)))]
    header = {"autoencoder": {"scaling_factor": 1.5305, "shift_factor": 0.0609}}
    return write_tar(tmp_path_factory.mktemp("captions") / "captions-0.tar", members, header)


@pytest.fixture(scope="module")
def narrow(shard: Path, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[[str, str], Config]:
    """One of the big configs, narrow, with one task of its mixture."""

    def make(name: str, task: str) -> Config:
        mixture = tmp_path_factory.mktemp("mixture") / "mixture.yaml"
        source = {"shards": str(shard), "weight": 1, "tasks": {task: 1}}
        mixture.write_text(yaml.safe_dump({"sources": {"captions": source}}))
        return load_config(root / "configs" / f"{name}.toml", [*NARROW, f"data.mixture={mixture}"])

    return make


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_step_of_every_task_fills_its_packs_and_has_finite_losses(
    name: str, task: str, narrow: Callable[[str, str], Config], make_model: Callable[..., OneFlow]
) -> None:
    config = narrow(name, task)
    loader = PackLoader(config, 0, 1)
    batches: list[PackedBatch] = loader.next_step()
    assert len(batches) == config.data.packs_per_step
    for batch in batches:
        assert len(batch.position) == config.data.rows_per_pack
        assert batch.counts.rows > 0.97 * config.data.rows_per_pack
        assert batch.counts.sequences < config.data.sequences_per_pack
        assert (batch.counts.bag_tokens > 0) == (task != "text_to_image")
        assert (batch.counts.moving_elements[0] > 0) == (task != "image_to_text")
    batch = batches[0]
    losses = compute_losses(make_model(config)(batch), batch, batch.counts, config)
    assert are_finite(losses)
    losses.total.backward()


def prompt_of(task: str, tokenizer: Tokenizer) -> Prompt:
    """What the task's sampler is asked."""
    return {
        "text_to_image": [*tokenizer.encode(CAPTION.decode()), ("image", None)],
        "image_to_text": [("image", np.zeros((16, 32, 32), dtype=np.float32))],
        "both": [..., ("image", None)],
    }[task]


def write(task: str, model: OneFlow, config: Config) -> Canvas:
    """A document of the task by a model whose slots lack three tokens with probability .9."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    with torch.no_grad():
        for head, bias in ((model.heads.zero, -2.2), (model.heads.rate, 1.1)):
            if head is not None:
                head.weight *= 0.1
                head.bias.fill_(bias)
    canvas = blank_canvas(prompt_of(task, tokenizer), tokenizer, config.modality, 0, 0)
    return generate(model, [canvas], config, tokenizer)[0]


# How long texts of the baselines are a random model does not say: of them images alone.
@pytest.mark.parametrize(
    ("name", "task"), [case for case in CASES if "oneflow" in case[0] or case[1] == "text_to_image"]
)
def test_every_task_can_be_sampled_to_its_last_row(
    name: str, task: str, narrow: Callable[[str, str], Config], make_model: Callable[..., OneFlow]
) -> None:
    """One image takes more than half of the rows, which leaves room for more than a hundred tokens."""
    config = narrow(name, task)
    canvas = write(task, make_model(config), config)
    assert canvas.is_done
    images = canvas.making["image"].pieces
    assert np.isfinite(images.patches).all()
    assert len(images) == 1
    assert config.modality["image"].num_rows == 256
    assert canvas.num_rows <= config.sampling.max_rows == config.data.max_sample_rows == 512
    written = int((canvas.born > 0).sum())
    assert written == 0 if task == "text_to_image" else written > 100

"""Shape checks in every test, and the small world that the tests share."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined: from here on Triton's are Python

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxtyping import install_import_hook

# Before anything of ours is imported: from here on every annotated shape and dtype is checked at every call.
# As for mypy, an int may stand where a float is expected.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["oneflow_dist", "oneflow_kernels"], CHECKER)

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, Pieces, Sample
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import (  # noqa: F401
    THREADS,
    group_of_one,
    launcher,
    made_once,
    run_main,
    torchrun_of_two,
    train_command,
    unbroken,
)

ROOT = Path(__file__).parents[1]
Grid = tuple[int, int]  # rows and columns of patches

settings.register_profile("facts", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("facts")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One, if nothing else is asked for: tests are small, threads cost more than they give."""
    torch.set_num_threads(int(THREADS))


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """For loops of 100,000 calls, where the checks cost ten times the work."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def unchecked() -> Callable[[], object]:
    """`with unchecked():` runs a stretch without shape checks."""
    return without_shape_checks


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of digits, their vocabulary and the mixture of the quickstart."""
    return made_once("digits", _make_digits, tmp_path_factory)


def _make_digits(folder: Path) -> Path:
    from tools.digits import make

    run_main(make, folder, "--documents", "256")
    (folder / "mixture.yaml").write_text(
        "sources:\n"
        f"  single: {{shards: '{folder}/single-train-*.tar', weight: 1, "
        "tasks: {interleaved: 2, text_to_image: 1, image_to_text: 1}}\n"
        f"  count: {{shards: '{folder}/count-train-*.tar', weight: 1, "
        "tasks: {interleaved: 1}, prompt: 'count up:'}\n"
    )
    heldout = (folder / "mixture.yaml").read_text().replace("-train-", "-heldout-")
    (folder / "heldout.yaml").write_text(heldout)
    for name in ("single", "count"):
        open_shards(name, f"{folder}/{name}-*.tar")  # writes the indexes, so that no run has to
    return folder


@pytest.fixture(scope="session")
def make_config(digits: Path) -> Callable[..., Config]:
    """The quickstart's config on the test's digits, with a tiny model; `overrides` as on the command line."""
    tiny = {
        "run": {"seed": 0},
        "validation": {"mixture": '""', "every_steps": 0},
        "model": {"width": 32, "num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2, "mlp_width": 48}
        | {"vocab_size": 512, "tie_embeddings": "false"},
        "heads": {"time_conditioning": "adaln"},
        "modality.image": {"channels": 1, "shape": [8, 8], "patch": [4, 4], "per_pack": 384}
        | {"time_conditioning": "added"},
        "flow": {"keep_schedule": "linear", "normalize": "batch", "condition_dropout_prob": 0.1},
        "data": {"mixture": digits / "mixture.yaml", "tokenizer": digits / "words.tiktoken", "workers": 0}
        | {"packs_per_step": 1, "rows_per_pack": 2048, "tokens_per_pack": 1536, "bag_tokens_per_pack": 768}
        | {"sequences_per_pack": 384, "max_sample_rows": 128, "window_samples": 256}
        | {"overlong": "error", "cached_samples": 65536},
    }
    fixed = [f"{section}.{key}={value}" for section, table in tiny.items() for key, value in table.items()]

    def make(*overrides: str) -> Config:
        return load_config(ROOT / "configs" / "quickstart.toml", [*fixed, *overrides])

    return make


@pytest.fixture(scope="session")
def config(make_config: Callable[..., Config]) -> Config:
    return make_config()


@pytest.fixture(scope="session")
def tokenizer(config: Config) -> Tokenizer:
    return load_tokenizer(config.data.tokenizer, config.modality)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., OneFlow]:
    """A model in which every parameter matters: first weights plus noise, so that no output is silent."""

    def make(config: Config, seed: int = 0, noise: float = 0.2) -> OneFlow:
        model = OneFlow(config)
        initialize(model, seed, config.model.num_layers)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """A sample from token ids, in which None is an image; the first `num_prompt` tokens are prompt.

    `grid` is that of every image, or one for each.
    """

    def make(
        tokens: Sequence[int | None],
        num_prompt: int = 1,
        is_interleaved: bool = True,
        key: str = "test/sample",
        grid: Grid | Sequence[Grid] = (2, 2),
        patch_elements: int = 16,
    ) -> Sample:
        image_token = 258  # of the byte tokenizer; what it is makes no difference to noising
        image_at = np.array([i for i, token in enumerate(tokens) if token is None], dtype=np.int64)
        rng = np.random.default_rng(len(tokens))
        return Sample(
            key=key,
            tokens=np.array([image_token if token is None else token for token in tokens], dtype=np.int64),
            is_target=np.arange(len(tokens)) >= num_prompt,
            pieces=(_make_images(image_at, np.ones(len(image_at)), grid, patch_elements, rng),),
            is_interleaved=is_interleaved,
        )

    return make


@pytest.fixture(scope="session")
def make_noisy() -> Callable[..., NoisySample]:
    """A noisy sample as noising makes them, but with random content: text, bags and images of any number."""

    def make(
        rng: np.random.Generator,
        num_tokens: int = 6,
        num_images: int = 1,
        num_bag_tokens: int = 4,
        vocab_size: int = 256,
        grid: Grid | Sequence[Grid] = (2, 2),
        patch_elements: int = 16,
        key: str = "test/noisy",
    ) -> NoisySample:
        tokens = rng.integers(vocab_size, size=num_tokens + num_images)
        image_at = np.sort(rng.choice(np.arange(1, len(tokens)), num_images, replace=False))
        time = rng.random(num_images)
        bag_tokens = rng.integers(vocab_size, size=num_bag_tokens)
        bag_slot = np.sort(rng.integers(len(tokens), size=num_bag_tokens))
        images = _make_images(image_at, time, grid, patch_elements, rng)
        velocity = rng.standard_normal(images.patches.shape, dtype=np.float32)
        return NoisySample(
            key=key,
            tokens=tokens,
            is_given=np.arange(len(tokens)) == 0,
            is_open=np.ones(len(tokens), dtype=bool),
            bags=Bags.of_tokens(bag_tokens, bag_slot, len(tokens)),
            pieces=(NoisyPieces(pieces=images, velocity=velocity, is_moving=np.ones(num_images, dtype=bool)),),
            text_time=float(rng.random()),
        )

    return make


def _make_images(
    token: np.ndarray,
    time: np.ndarray,
    grid: Grid | Sequence[Grid],
    patch_elements: int,
    rng: np.random.Generator,
) -> Pieces:
    """Images of random content; `grid` is that of all, or one for each."""
    grids = np.ones((len(token), 3), dtype=np.int64)
    grids[:, 1:] = np.array(grid)
    patches = rng.standard_normal((grids.prod(axis=1).sum(), patch_elements), dtype=np.float32)
    return Pieces(token=token, time=time, grid=grids, stride=np.ones(len(token)), patches=patches)

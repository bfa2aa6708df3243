"""What a run needs beside the shards: mixtures that name them, and a config that trains on them in minutes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.prepare.samples import Kind, Sample
from oneflow_dist.prepare.settings import Options
from oneflow_dist.prepare.shards import HELD_OUT, ShardPlan, caption_fields

# What a source trains on, by its kind. Pictures from captions are what most people come for and what is hardest to
# learn; a fifth is for describing pictures, and a fifth for both at once, the paper's share of mixed generation.
TASKS: dict[Kind, str] = {
    "pairs": "{text_to_image: 3, image_to_text: 1, both: 1}",
    "pictures": "{image_only: 1}",
    "documents": "{interleaved: 1}",
    "conversations": "{instruct: 1}",
    "texts": "{text_only: 1}",
}
NUM_PROMPTS = 4
MAX_PROMPT = 60  # characters, if there are such
TRAINED_ROWS = 1000 * 1024  # of all packs: six minutes on one core
LONGER_PROMPT = 64  # rows by which what a user asks for may be longer than any sample
MIXTURE, HELD_OUT_MIXTURE, CONFIG, WORDS = "mixture.yaml", "heldout.yaml", "config.toml", "words.tiktoken"
GENEROUS = {  # capacities before any sample is measured: no small sample is refused
    "data.rows_per_pack": 1024,
    "data.tokens_per_pack": 1024,
    "data.bag_tokens_per_pack": 1024,
    "data.sequences_per_pack": 256,
    "data.max_sample_rows": 1024,
    "modality.image.per_pack": 256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """How the model sees pictures."""

    channels: int
    shape: tuple[int, int]
    patch: tuple[int, int]
    codec: str


def write_mixture(folder: Path, plans: Sequence[ShardPlan], split: str, num_captions: int) -> str:
    """The sources of a split, weighted by their samples, so that each sample counts the same.

    Args:
        folder: in which the shards lie.
    """
    lines = [
        f"# Written by oneflow prepare: {'kept from training' if split == HELD_OUT else 'to train on'}.",
        "sources:",
    ]
    for kind in dict.fromkeys(plan.kind for plan in plans if plan.split == split):
        own = [plan for plan in plans if (plan.kind, plan.split) == (kind, split)]
        lines += [
            f"  {kind}:",
            f"    shards: {_quote(folder / _pattern([plan.name for plan in own]))}",
            f"    weight: {sum(len(plan.samples) for plan in own)}",
            f"    tasks: {TASKS[kind]}",
        ]
        if kind == "pairs" and num_captions > 1:
            lines.append(f"    caption: {{{', '.join(f'{name}: 1' for name in caption_fields(num_captions))}}}")
    return "\n".join(lines) + "\n"


def choose_prompts(samples: Sequence[Sample]) -> list[str]:
    """Captions to draw, spread over the samples, short ones if there are such; without any what else is there."""
    captions = list(dict.fromkeys(sample.captions[0] for sample in samples if sample.captions))
    plain = [caption for caption in captions if "<|" not in caption]
    short = [caption for caption in plain if len(caption) <= MAX_PROMPT] or plain
    if short:
        count = min(NUM_PROMPTS, len(short))
        return [f"{short[(2 * turn + 1) * len(short) // (2 * count)]}<|image|>" for turn in range(count)]
    return ["<|image|>"] if any(sample.kind == "pictures" for sample in samples) else [""]


def write_config(
    options: Options,
    images: Images,
    vocab_size: int,
    tokenizer: str,
    prompts: Sequence[str],
    capacities: Mapping[str, int],
    overlong: str,
    has_held_out: bool,
) -> str:
    """A config of a small model, as text."""
    folder = options.output
    steps = max(200, 100 * round(TRAINED_ROWS / capacities["data.rows_per_pack"] / 100))
    data = {key.partition(".")[2]: value for key, value in capacities.items() if key.startswith("data.")}
    validation = (
        f"\n[validation]\nmixture = {_quote(folder / HELD_OUT_MIXTURE)}\nevery_steps = {steps // 4}\nsamples = 64\n"
        if has_held_out
        else ""
    )
    return (
        CONFIG_TEXT.format(
            run=_quote(Path("runs") / options.name),
            seed=options.seed,
            vocab_size=vocab_size,
            channels=images.channels,
            shape=list(images.shape),
            patch=list(images.patch),
            num_rows=images.shape[0] // images.patch[0] * (images.shape[1] // images.patch[1]),
            per_pack=capacities["modality.image.per_pack"],
            codec=_quote(images.codec),
            mixture=_quote(folder / MIXTURE),
            tokenizer=_quote(tokenizer),
            capacities="\n".join(f"{key} = {value}" for key, value in data.items()),
            overlong=overlong,
            steps=steps,
            half=steps // 2,
            max_rows=data["max_sample_rows"] + LONGER_PROMPT,
            prompts=json.dumps(prompts, ensure_ascii=False),
        )
        + validation
    )


def count_kinds(plans: Sequence[ShardPlan], split: str) -> Counter[str]:
    """Samples of a split by kind."""
    counts = Counter[str]()
    for plan in plans:
        counts[plan.kind] += len(plan.samples) if plan.split == split else 0
    return +counts


def default_vocab_size(num_characters: int) -> int:
    """Ranks for so much text: a token that comes a dozen times in all is not learned, so little text has few."""
    return next(
        (size for size, most in ((512, 50_000), (1024, 500_000), (2048, 2_000_000)) if num_characters < most), 4096
    )


def _pattern(names: Sequence[str]) -> str:
    """All shards of a source by one name with braces."""
    if len(names) == 1:
        return names[0]
    stem = names[0].rpartition("-")[0]
    return f"{stem}-{{000000..{len(names) - 1:06d}}}.tar"


def _quote(value: str | Path) -> str:
    """A text as TOML and YAML have it."""
    return json.dumps(str(value), ensure_ascii=False)


CONFIG_TEXT = """\
# Written by oneflow prepare: a small model that trains in minutes on two CPU cores. On a GPU raise the model,
# data.packs_per_step and train.steps. configs/README.md of the project has all keys.
[run]
folder = {run}
seed = {seed}

[model]
width = 192
num_layers = 6
num_attention_heads = 6
num_kv_heads = 6
mlp_width = 512
vocab_size = {vocab_size}
rope_theta = 10000.0
norm_eps = 1e-5
tie_embeddings = false
rope_scaling = 1.0

[heads]
time_conditioning = "adaln"

[modality.image]
token = "<|image|>"
channels = {channels}
shape = {shape}
patch = {patch}  # {num_rows} rows per picture
per_pack = {per_pack}
codec = {codec}
adapter = "linear"
time_conditioning = "added"
loss_weight = 1.0

[flow]
keep_schedule = "linear"
keep_exponent = 1.0
normalize = "batch"
condition_dropout_prob = 0.1

[data]
mixture = {mixture}
tokenizer = {tokenizer}
packs_per_step = 1
{capacities}
overlong = "{overlong}"
window_samples = 512
workers = 1
cached_samples = 4096

[optim]
lr = 2e-3
warmup_steps = 150
lr_schedule = "cosine"
final_lr_fraction = 0.05
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
max_grad_norm = 1.0
ema_decay = 0.997

[train]
steps = {steps}
precision = "fp32"

[parallel]
replicate = 1
shard = -1

[checkpoint]
every_steps = {half}
keep = 2

[guard]
spike_factor = 0.0
max_skipped_steps = 0

[metrics]
tensorboard = false

[sampling]
every_steps = {half}
steps = 40
time_power = 1.5
firing = "systematic"
guidance = {{ image = 3.0 }}
temperature = 1.0
top_k = 0
top_p = 0.9
max_rows = {max_rows}
prompts = {prompts}
"""

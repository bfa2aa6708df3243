"""Every knob of a run, with its unit: load from TOML, override, check, write back."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from oneflow_dist.modality import ModalityConfig, check_modalities
from oneflow_dist.objective import ObjectiveConfig, Sees, check_generation, check_objective
from oneflow_dist.sampling import SamplingConfig, check_sampling
from oneflow_dist.toml import (
    Decay,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    apply_override,
    check_range,
    field_ranges,
    ranges_of,
    read_tables,
    write_tables,
)

# Files and folders, and what may stand there; "~" at their start is the user's home.
PATHS = {
    "run": {"folder": "a folder, as runs/mine"},
    "data": {"mixture": "a YAML file, as configs/data/quickstart.yaml", "tokenizer": 'a ranks file, or "bytes"'},
    "init": {"path": "a run, as runs/mine, or a folder of Hugging Face"},
    "validation": {"mixture": "a YAML file, as configs/data/quickstart_heldout.yaml"},
    "checkpoint": {"memory_folder": "a folder in memory, as /dev/shm"},
}
MAY_BE_EMPTY = ("init.path", "validation.mixture")
Product = Literal["attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"]  # of a block of the trunk
PRODUCTS: tuple[Product, ...] = get_args(Product)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """[run] Where results go, and the seed of everything random."""

    folder: str
    seed: Annotated[int, "[0, 2^63)"]  # numpy takes larger ones through a float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model] The shared transformer."""

    width: Positive
    num_layers: Positive
    num_attention_heads: Positive
    num_kv_heads: Positive
    mlp_width: Positive
    vocab_size: Positive  # at least the tokenizer's
    rope_theta: PositiveFloat
    norm_eps: NonNegativeFloat
    tie_embeddings: bool  # the bag head uses the embedding's weight
    rope_scaling: PositiveFloat  # Llama 3's stretching of slow frequencies: 8 for 3.1, 32 for 3.2, 1 for none
    qk_norm: bool = False  # queries and keys are normed before they meet
    # What rows of the prompt see: all, or the prompt in front alone, and of blocks that are finished those before, so
    # that generation computes their keys and values once.
    prompt_sees: Literal["all", "prompt"] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitConfig:
    """[init] The weights that a new run starts from; a run that goes on does not look there."""

    path: str = ""  # a run folder, a checkpoint, an exported folder or a Llama of Hugging Face; "": from nothing
    weights: Literal["ema", "model"] = "ema"  # of a checkpoint: averaged, or as last trained
    tensors: tuple[str, ...] = ("*",)  # patterns of the names of parameters that are taken; the others start anew
    optimizer: bool = False  # the state of the optimizer too, of a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """[lora] Products of the trunk whose weights stay as they are, with a small one learnt beside each.

    Source: arXiv:2106.09685.
    """

    rank: NonNegative = 0  # 0: none
    alpha: PositiveFloat = 16.0  # what is learnt counts alpha / rank times
    products: tuple[Product, ...] = PRODUCTS
    dropout: Decay = 0.0  # chance that one of the `rank` values of a row counts nothing in a step


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsConfig:
    """[heads] What the insertion heads know of the time."""

    # "none" as in the paper: the number of sampler steps then sets the length of what is written. "token": the first
    # token of a sequence carries the text time. "adaln": the heads' input is modulated by it.
    time_conditioning: Literal["none", "token", "adaln"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """[flow] The noising process and its losses."""

    keep_schedule: Literal["linear", "cosine", "power"]
    keep_exponent: PositiveFloat  # of "power"
    normalize: Literal["batch", "paper"]  # of the text losses
    condition_dropout_prob: Share  # a sample keeps its moving pieces alone: what guidance of pieces compares with
    prompt_dropout_prob: Share = 0.0  # a sample with open text loses its prompt: what guidance of text compares with
    # What the text losses ask for: the tokens that were deleted, or their mean over all ways in which the kept ones may
    # lie in the text, which has the same optimum and less noise.
    bags: Literal["sampled", "averaged"] = "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """[data] Where samples come from and how many fit in a pack."""

    mixture: str  # YAML file
    tokenizer: str  # tiktoken ranks file, or "bytes"
    packs_per_step: Positive  # over all ranks; what one rank cannot do at once it accumulates
    rows_per_pack: Positive
    tokens_per_pack: Positive
    bag_tokens_per_pack: Positive
    sequences_per_pack: Annotated[int, "[2, inf)"]  # one is for padding
    max_sample_rows: Positive  # of a complete sample
    block_rows: NonNegative = 0  # the most of a block, in the task blocks; 0: no source has it
    overlong: Literal["error", "drop", "window"]  # a longer sample: stop, leave it out, take a random part of it
    window_samples: Positive  # how many wait for packing
    # Which of them make a pack: the oldest, or such that all packs have about the same attention work, so that no rank
    # waits for another.
    packing: Literal["oldest", "balanced"] = "oldest"
    workers: NonNegative = 1  # processes per rank; 0 loads in the training process
    cached_samples: NonNegative = 0  # decoded samples each worker keeps in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimGroup:
    """[[optim.group]] Parameters that learn in another way; each belongs to the first group that names it."""

    names: tuple[str, ...]  # patterns, as "blocks.*" or "adapters.image.*"
    lr_factor: NonNegativeFloat = 1.0
    decay_factor: NonNegativeFloat = 1.0  # of weight_decay
    frozen: bool = False  # they never change: no gradients, no moments, no average


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """[optim] The optimizer and its learning rate."""

    lr: PositiveFloat
    warmup_steps: NonNegative
    # "wsd": constant, then in the last `decay_steps` a line to `final_lr_fraction`. "inverse_sqrt": lr * sqrt(warmup /
    # step), and the same line at the end.
    lr_schedule: Literal["cosine", "constant", "wsd", "inverse_sqrt"]
    final_lr_fraction: Share  # of what it would be, at the last step; not of "constant"
    decay_steps: NonNegative = 0  # of "wsd" and "inverse_sqrt"
    matrices: Literal["adamw", "muon"] = "adamw"  # what moves the weights of the trunk's products
    beta1: Decay
    beta2: Decay
    eps: PositiveFloat
    weight_decay: NonNegativeFloat  # not on norms and biases
    max_grad_norm: Annotated[float, "(0, inf]"]  # inf: nothing is clipped
    ema_decay: Decay  # of a step
    ema_every_steps: Positive = 1  # the average moves after so many steps, by ema_decay to that power
    offload: bool = False  # weights, moments and average live in host memory, and the update is made there
    group: tuple[OptimGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """[train] How long, in which precision, and what memory is traded for."""

    steps: Positive
    precision: Literal["fp32", "bf16", "float8"]  # of products; weights and reductions are fp32. float8: the trunk's
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # what blocks compute again backward
    compile: bool = False  # torch.compile each block
    deterministic: bool = False  # the same bits in every run on the same devices; slower
    gc_every_steps: NonNegative = 0  # collect Python's garbage on all ranks at once; 0: whenever it likes


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """[parallel] Mesh axes; their product is the number of ranks."""

    replicate: Positive = 1
    shard: Annotated[int, "[-1, -1] or [1, inf)"] = -1  # -1: all ranks that are left
    context: Positive = 1  # ranks that share the rows of one pack, each with all weights; best within one node
    tensor: Positive = 1  # ranks that share the rows and the weights of one pack; best within one node
    async_tensor: bool = False  # their products overlap with their communication; CUDA and train.compile only


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """[checkpoint] When to save and how many to keep."""

    every_steps: Positive
    keep: Positive  # the newest; older ones are deleted
    keep_every_steps: NonNegative = 0  # those of multiples of this are never deleted; 0: no such multiples
    background: bool = False  # write while training goes on; host memory for one copy of the state
    memory_every_steps: NonNegative = 0  # copies in the host memory of two nodes, to go on from after a crash; 0: none
    memory_folder: str = "/dev/shm"  # where they lie: in memory, and of each node's own


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """[guard] What a run does about broken numbers, slow ranks and hangs."""

    spike_factor: (
        NonNegativeFloat  # a gradient norm above this multiple of its running mean is a spike; 0: nothing is one
    )
    max_skipped_steps: NonNegative  # spikes and steps that are not finite leave the weights alone, so often; then end
    hang_seconds: NonNegativeFloat = (
        0.0  # a phase of a step that takes longer ends the run and names it; 0: wait for ever
    )
    slow_ranks_every_steps: NonNegative = 0  # report the ranks that the others wait for; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """[metrics] Sinks beside metrics.jsonl."""

    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "oneflow_dist"
    wandb_entity: str = ""  # team or user; "": the user's own default
    wandb_tags: tuple[str, ...] = ()
    profile_step: NonNegative = 0  # write a trace of this step of each rank to <run>/traces; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """[validation] Losses on held-out documents, which training then leaves out."""

    mixture: str = ""  # YAML file of the held-out sources; "": none
    every_steps: NonNegative = 0  # and after the last step; 0: never
    samples: Positive = 256  # documents of each source, each of which is looked at in every quarter of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole run."""

    run: RunConfig
    objective: ObjectiveConfig
    init: InitConfig
    model: ModelConfig
    lora: LoraConfig
    heads: HeadsConfig
    modality: dict[str, ModalityConfig]  # by name
    flow: FlowConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    metrics: MetricsConfig
    sampling: SamplingConfig
    validation: ValidationConfig

    @property
    def sees(self) -> Sees:
        """Which rows each row sees."""
        return "past" if self.objective.looks_back else self.model.prompt_sees


def group_of(name: str, config: OptimConfig) -> OptimGroup:
    """The first group that names a parameter; one that changes nothing if none does."""
    named = (group for group in config.group if any(fnmatch.fnmatchcase(name, pattern) for pattern in group.names))
    return next(named, OptimGroup(names=()))


RANGES = ranges_of(Config)  # the interval of every number, by section and key


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a TOML file, apply `section.key=value` overrides (values are TOML; a bare word is a string), check.

    Raises:
        ValueError: no such file, bad TOML, an unknown or missing key, a wrong type, a number out of its range, an
            impossible combination.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such config file; configs/ has the ones that come with the project")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    for override in overrides or []:
        apply_override(table, override)
    config = _at_home(read_tables(Config, table))
    check_config(config)
    return config


def write_config(config: Config) -> str:
    """The config as TOML, every knob written out; `load_config` reads it back equal."""
    return write_tables(config)


def check_config(config: Config) -> None:
    """Numbers, paths and combinations that cannot work.

    Raises:
        ValueError: names the keys, their values and a way out.
    """
    for section, ranges in RANGES.items():
        for key, interval in ranges.items():
            check_range(f"{section}.{key}", getattr(getattr(config, section), key), interval)
    for section, paths in PATHS.items():
        for key, what in paths.items():
            path = getattr(getattr(config, section), key)
            if not path.strip() and f"{section}.{key}" not in MAY_BE_EMPTY:
                raise ValueError(f"{section}.{key}: is empty; name {what}")
            if path.startswith("~"):  # what has a home is at home since `load_config`
                raise ValueError(f"{section}.{key}: {path}: there is no such user here; ./{path} is what is called so")
    check_modalities(config.modality)
    for number, group in enumerate(config.optim.group):
        for key, interval in field_ranges(OptimGroup).items():
            check_range(f"optim.group[{number}].{key}", getattr(group, key), interval)
    model, data = config.model, config.data
    if model.width % model.num_attention_heads or (model.width // model.num_attention_heads) % 2:
        raise ValueError(
            f"model.width ({model.width}) / model.num_attention_heads ({model.num_attention_heads}) "
            "must be an even whole number, the head width"
        )
    if model.num_attention_heads % model.num_kv_heads:
        raise ValueError(
            f"model.num_kv_heads ({model.num_kv_heads}) must divide "
            f"model.num_attention_heads ({model.num_attention_heads})"
        )
    if data.max_sample_rows > data.rows_per_pack or data.max_sample_rows > data.tokens_per_pack:
        raise ValueError(
            f"data.max_sample_rows ({data.max_sample_rows}) must not exceed data.rows_per_pack ({data.rows_per_pack}) "
            f"or what data.tokens_per_pack ({data.tokens_per_pack}) can hold; lower it or raise the capacities"
        )
    if data.block_rows >= data.max_sample_rows:
        raise ValueError(
            f"data.block_rows ({data.block_rows}) must be less than data.max_sample_rows ({data.max_sample_rows}): a "
            "sample is a block and the prompt before it; lower it"
        )
    if data.max_sample_rows > data.bag_tokens_per_pack:
        raise ValueError(
            f"data.bag_tokens_per_pack ({data.bag_tokens_per_pack}) must be at least "
            f"data.max_sample_rows ({data.max_sample_rows}): all tokens of a sample can be missing at once"
        )
    flow = config.flow
    if flow.condition_dropout_prob + flow.prompt_dropout_prob > 1.0:
        raise ValueError(
            f"flow.prompt_dropout_prob: {flow.prompt_dropout_prob} and flow.condition_dropout_prob "
            f"({flow.condition_dropout_prob}) are parts of the same samples, more than 1 together; lower one"
        )
    validation = config.validation
    if bool(validation.mixture) != bool(validation.every_steps):
        raise ValueError(
            f"validation.every_steps: is {validation.every_steps}, but validation.mixture is {validation.mixture!r}; "
            "set both, or neither (0 and an empty text)"
        )
    if model.prompt_sees == "prompt" and config.heads.time_conditioning == "token":
        raise ValueError(
            'model.prompt_sees: is "prompt", which needs heads.time_conditioning "none" or "adaln": the text time on '
            "the first token would change all rows of the prompt with every step"
        )
    check_objective(config.objective, model.prompt_sees, config.heads.time_conditioning, flow.bags)
    check_generation(config.objective, config.sampling)
    check_sampling(config.sampling, config.modality, config.heads.time_conditioning)
    if config.parallel.async_tensor and not (config.train.compile and config.parallel.tensor > 1):
        raise ValueError(
            f"parallel.async_tensor: needs parallel.tensor > 1 (it is {config.parallel.tensor}) "
            f"and train.compile = true (it is {str(config.train.compile).lower()})"
        )


def _at_home(config: Config) -> Config:
    """Shells expand "~" at the start of a word only, which the value of section.key=value is not."""
    for section, paths in PATHS.items():
        values = getattr(config, section)
        own = {key: os.path.expanduser(getattr(values, key)) for key in paths}  # noqa: PTH111 # a Path would normalize
        config = dataclasses.replace(config, **{section: dataclasses.replace(values, **own)})
    modalities = {
        name: dataclasses.replace(modality, codec=os.path.expanduser(modality.codec))  # noqa: PTH111 # as above
        for name, modality in config.modality.items()
    }
    return dataclasses.replace(config, modality=modalities)

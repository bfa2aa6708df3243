"""Runs whose speed was published, with what of them is known and what is assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oneflow_dist.planning.gpus import GPUS, Gpu

H100, H200 = GPUS["h100-80gb"], GPUS["h200-141gb"]
# "96GB HBM2e, 2.4 TB/s, limited to 500 W: the actual peak is between SXM and NVL" (torchtitan): taken in the middle.
H100_500W = replace(
    H100, name="h100-96gb-500w", memory_bytes=96e9, flops_per_second=912e12, bandwidth_bytes_per_second=2.4e12
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """A transformer; where its MLP has two weights of 4 widths ours has three of 8/3, as many parameters."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab: int
    tied: bool = False


LLAMA_1B = Trunk(width=2048, layers=16, heads=32, kv_heads=8, mlp_width=8192, vocab=128256)
LLAMA_8B = Trunk(width=4096, layers=32, heads=32, kv_heads=8, mlp_width=14336, vocab=128256)
KEMPNER_13B = Trunk(width=5120, layers=40, heads=40, kv_heads=8, mlp_width=17920, vocab=128256)
MPT_1B = Trunk(width=2048, layers=24, heads=16, kv_heads=16, mlp_width=5440, vocab=50368, tied=True)
MEGATRON_2B = Trunk(width=2048, layers=28, heads=16, kv_heads=16, mlp_width=5440, vocab=131072, tied=True)
MEGATRON_7B = Trunk(width=4096, layers=32, heads=32, kv_heads=32, mlp_width=10944, vocab=131072, tied=True)
NANOCHAT_24 = Trunk(width=1536, layers=24, heads=12, kv_heads=12, mlp_width=4104, vocab=32784)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A run of texts, each of `length` tokens that see those before them."""

    system: str
    name: str
    trunk: Trunk
    gpu: Gpu
    tokens_per_second: float  # of one GPU
    published: str  # the figure as it was published, if that is another
    length: int
    documents: int  # of a microbatch and pack
    accumulated: int = 1  # microbatches
    shard: int = 1
    replicate: int = 1
    tensor: int = 1
    gpus_per_node: int = 8
    checkpointing: str = "none"
    precision: str = "bf16"
    is_compiled: bool = True
    is_async: bool = False
    assumed: str = ""
    known: str = ""

    @property
    def world_size(self) -> int:
        return self.shard * self.replicate * self.tensor


def per_token(trunk: Trunk, length: int) -> float:
    """FLOPs by the convention of these systems: 6 x weights of products + 12 x layers x width x length, no halving."""
    head_width = trunk.width // trunk.heads
    layer = 2 * trunk.width**2 + 2 * trunk.width * trunk.kv_heads * head_width + 3 * trunk.width * trunk.mlp_width
    weights = trunk.layers * layer + trunk.width * trunk.vocab
    return 6.0 * weights + 12.0 * trunk.layers * trunk.width * length


TITAN = "torchtitan"
SELECTIVE = "selective: theirs computes half of the products again, ours 54 % of the forward ones"


def _titan(gpus: int, precision: str, rate: float, is_compiled: bool = True) -> Published:
    how = "eager" if not is_compiled else "float8" if precision == "float8" else "compiled"
    return Published(
        system=TITAN,
        name=f"8B, {gpus} H100, {how}",
        trunk=LLAMA_8B,
        gpu=H100_500W,
        tokens_per_second=rate,
        published="tok/s/GPU",
        length=8192,
        documents=2,
        shard=gpus,
        checkpointing="selective",
        precision=precision,
        is_compiled=is_compiled,
        known="FSDP, 2 documents a GPU, selective checkpointing; HBM2e of 2.4 TB/s, 500 W",
        assumed=f"peak 912 TFLOP/s, half way from NVL to SXM; {SELECTIVE}",
    )


def _kempner(trunk: Trunk, name: str, total: float, shard: int = 1, tensor: int = 1, accumulated: int = 2) -> Published:
    gpus = shard * tensor
    return Published(
        system="KempnerForge",
        name=f"{name}, {gpus} H200" + (f", tensor {tensor}" if tensor > 1 else ""),
        trunk=trunk,
        gpu=H200,
        tokens_per_second=total / gpus,
        published=f"{total:,.0f} tok/s",
        length=4096,
        documents=4,
        accumulated=accumulated,
        shard=shard,
        tensor=tensor,
        gpus_per_node=4,
        checkpointing="full",
        is_compiled=not (trunk == KEMPNER_13B and tensor == 1),
        known=f"nodes of 4; 4 documents a microbatch, {accumulated} of them; full checkpointing",
        assumed="400 Gb/s a GPU between nodes",
    )


def _foundry(gpus: int, rate: float, documents: int) -> Published:
    return Published(
        system="llm-foundry",
        name=f"1B, {gpus} H100",
        trunk=MPT_1B,
        gpu=H100,
        tokens_per_second=rate,
        published="tok/s/GPU",
        length=2048,
        documents=documents,
        shard=gpus,
        is_compiled=False,
        known="FSDP, eager; 2,048 tokens",
        assumed="MLP of three weights for their two; 400 Gb/s a GPU between nodes",
    )


def _megatron(trunk: Trunk, name: str, rate: float, shard: int, replicate: int, tensor: int = 1) -> Published:
    gpus, share = shard * replicate * tensor, "a GPU" if tensor == 1 else "a pair of GPUs"
    sharding = "our sharding in nodes" if tensor == 1 else "our sharding"
    return Published(
        system="Megatron-LM",
        name=f"{name}, {gpus} H100" + (f", tensor {tensor}" if tensor > 1 else ""),
        trunk=trunk,
        gpu=H100,
        tokens_per_second=rate / per_token(trunk, 4096),
        published=f"{rate / 1e12:.1f} TFLOP/s",
        length=4096,
        documents=4,
        accumulated=2,
        shard=shard,
        replicate=replicate,
        tensor=tensor,
        is_async=tensor > 1,
        known="4,096 tokens, vocabulary 131,072" + (", tensor communication overlaps" if tensor > 1 else ""),
        assumed=(
            f"{trunk.layers} layers of {trunk.width:,}; 2 x 4 documents {share}; {sharding} for its sharded optimizer"
        ),
    )


RUNS = (
    _titan(8, "bf16", 6667.0),
    _titan(128, "bf16", 6514.0),
    _titan(8, "float8", 8532.0),
    _titan(128, "float8", 8380.0),
    _titan(8, "bf16", 5762.0, is_compiled=False),
    _titan(128, "bf16", 5605.0, is_compiled=False),
    _kempner(LLAMA_8B, "8B", 10471.0),
    _kempner(LLAMA_8B, "8B", 38983.0, shard=4),
    _kempner(LLAMA_8B, "8B", 25135.0, tensor=4),
    _kempner(KEMPNER_13B, "13B, eager", 35405.0, shard=8, accumulated=4),
    _megatron(MEGATRON_2B, "1.7B", 408.8e12, shard=8, replicate=6),
    _megatron(MEGATRON_7B, "7.1B", 465.9e12, shard=4, replicate=12, tensor=2),
    _foundry(8, 45455.0, documents=14),
    _foundry(64, 44402.0, documents=20),
    _foundry(512, 45455.0 * 36.7 / 41.82, documents=20),
    Published(
        system="nanochat",
        name="d24, 8 H100",
        trunk=NANOCHAT_24,
        gpu=H100,
        tokens_per_second=494e12 / per_token(NANOCHAT_24, 2048),
        published="494 TFLOP/s",
        length=2048,
        documents=32,
        replicate=8,
        known="2,048 tokens, 32 documents a GPU, FlashAttention 3",
        assumed="AdamW for its Muon; whole attention; no value embeddings",
    ),
    *(
        Published(
            system=TITAN,
            name=f"1B, one H100, {documents} x {length:,}, {checkpointing}",
            trunk=LLAMA_1B,
            gpu=H100,
            tokens_per_second=rate,
            published="tok/s, measured by this project",
            length=length,
            documents=documents,
            checkpointing=checkpointing,
            known="docs/results/h100/first-report.md; 700 W",
            assumed=SELECTIVE if checkpointing == "selective" else "",
        )
        for documents, length, checkpointing, rate in (
            (32, 512, "none", 61173.0),
            (2, 8192, "none", 49356.0),
            (32, 512, "selective", 56126.0),
        )
    ),
)

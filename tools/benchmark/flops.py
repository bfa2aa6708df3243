"""What a document costs, and what it would cost autoregressively: by closed form, real noising, torch's count."""

# Shapes: L text tokens and an image of I rows, or none, in a document.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, NoisySample, PackedBatch, Pieces, Sample
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.flow.noising import keyed_generator
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.flops import flops_by_part
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.activations import checkpoint_block
from oneflow_dist.planning.batches import picture_modality
from oneflow_dist.planning.trace import without_values
from oneflow_dist.process import process_of
from tools.benchmark.objectives import with_objective
from tools.benchmark.report import MODEL_FLOPS
from tools.benchmark.result import Measured, Series

PACKED = 32  # documents that are packed together, to be counted
COUNTED_ROWS = 65536  # at most so many rows go through the network that torch counts
MOMENTS = 4096  # of the closed form: midpoints of [0, 1]
OTHERS = "adapters, times, small heads"  # in no formula but adapters, and these as if a gradient left them
EOS, MARK = 1, 2  # of documents whose other tokens are 0
LAWS = {False: "text time in [0, 1]", True: "interleaved, time in [0, 2]"}  # by `Sample.is_interleaved`
DOCUMENT = (
    "A document: a first token that always stays, L text tokens and, where asked for, an image of I rows with its "
    "token. `expected` integrates the closed form over the times; `drawn` noises that many documents with "
    "flow/noising.py and takes the counts of their packs; `counted` is torch's FLOP counter on a real forward and "
    "backward pass over some of them, on tensors without values, over the formula on the same ones. Attention counts "
    "3.5 x 4 x width x layers x pairs on both sides, since no shape tells its pairs."
)
RIVAL = (
    "Autoregressive: the same trunk on all of the document, once: causal pairs (half), those inside the image both "
    "ways, logits for every token that is predicted. OneFlow's rows are those that noising leaves, its logits those "
    "of slots where a token is missing, all that this code computes. `logits at every slot` is without that saving."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What a document holds in the mean."""

    rows: float
    pairs: float  # of rows that see each other
    filled: float  # slots where a token is missing
    slots: float
    patches: tuple[float, ...]  # of each modality

    @classmethod
    def of_counts(cls, counts: Counts) -> Mean:
        """Of real packs; every kept token has a slot."""
        documents = counts.sequences
        return cls(
            rows=counts.rows / documents,
            pairs=counts.attention_pairs / documents,
            filled=counts.filled_slots / documents,
            slots=counts.text_tokens / documents,
            patches=tuple(count / documents for count in counts.patches),
        )


def measure(config: Config, length: int, image_rows: int, documents: int, steps: int) -> Measured:
    """A document of `length` text tokens and an image of `image_rows`, 0 for none; and `steps` of the config's data.

    Args:
        documents: that are noised.
    """
    config = with_objective(config, "insertion")
    rival = autoregressive(config, length, image_rows)
    numbers: dict[str, float | str | None] = {"text tokens": length, "image rows": image_rows, "drawn": documents}
    gflop: Series = {"GFLOP, autoregressive": in_gflop(flops_of(config, rival))}
    ratios: Series = {}
    counted: Series = {}
    if steps:
        of_data = count_data(config, steps)
        flops = flops_of(config, Mean.of_counts(of_data))
        gflop[f"GFLOP, {config.data.mixture}"] = in_gflop(flops)
        numbers["documents of a step of the data"] = of_data.sequences / steps
        numbers["TFLOP of a step of the data"] = sum(flops.values()) * of_data.sequences / steps / 1e12
    for is_interleaved, law in LAWS.items():
        shape = length, image_rows, is_interleaved
        groups = count_groups(config, *shape, documents)
        means = {"expected": expected(config, *shape), "drawn": Mean.of_counts(sum(groups, Counts.zeros()))}
        numbers[f"standard error of drawn FLOPs, {law}"] = standard_error(config, groups)
        for way, mean in means.items():
            gflop[f"GFLOP, {law}, {way}"] = in_gflop(flops_of(config, mean))
            ratios[f"/ autoregressive, {law}, {way}"] = ratios_of(config, mean, rival)
        counted[f"counted / formula, {law}"] = count_with_torch(config, *shape)
        full = config.data.packs_per_step * config.data.rows_per_pack / means["expected"].rows
        numbers[f"documents of a full step, {law}"] = full
        numbers[f"TFLOP of a full step, {law}"] = full * sum(flops_of(config, means["expected"]).values()) / 1e12
    return Measured(numbers=numbers, series=gflop | ratios | counted, notes=[DOCUMENT, RIVAL, MODEL_FLOPS])


def expected(config: Config, length: int, image_rows: int, is_interleaved: bool) -> Mean:
    """In closed form given the time, and integrated over it.

    Given that a token stays with probability keep: n ~ Binomial(L, keep) of the text, so

        E n = L keep        Var n = L keep (1 - keep)        E filled = (1 - keep) (1 + (L - 1) keep)

    since a slot is filled where a missing token follows one that stays. With keep = t, t ~ U[0, 1], the means are
    L / 2, E n^2 = L (2 L + 1) / 6 and (L + 2) / 6.

    Image: it stays where it is not inserted like text. Where it moves, condition dropout leaves nothing beside it.
    """
    keep = keep_probs(config, is_interleaved)
    num_images = int(image_rows > 0)
    is_present = num_images * (keep if is_interleaved else np.ones_like(keep))
    is_moving = is_present.copy()
    if is_interleaved:  # after the text an image that appeared at T moves until T + 1
        is_moving[MOMENTS:] *= 1.0 - keep[:MOMENTS]
    dropped = config.flow.condition_dropout_prob * is_moving
    image = 1 + image_rows
    text, variance = length * keep, length * keep * (1.0 - keep)
    rows = pairs = slots = np.zeros_like(keep)
    for share, fixed_rows, fixed_slots, text_share in (
        (1.0 - is_present, 1, 1, 1),
        (is_present - dropped, 1 + image, 2, 1),
        (dropped, 1 + image, 2, 0),
    ):
        rows = rows + share * (fixed_rows + text_share * text)
        pairs = pairs + share * ((fixed_rows + text_share * text) ** 2 + text_share * variance)
        slots = slots + share * (fixed_slots + text_share * text)
    filled = (1.0 - dropped) * (1.0 - keep) * (1.0 + (length - 1) * keep)
    filled = filled + num_images * (1.0 - is_present) * keep  # the image's own bag, if the last token of the text stays
    patches = of_pictures(config, image_rows * is_present.mean())
    return Mean(rows=rows.mean(), pairs=pairs.mean(), filled=filled.mean(), slots=slots.mean(), patches=patches)


def keep_probs(config: Config, is_interleaved: bool) -> Float[np.ndarray, "t"]:
    """Chance that a token of the text is there, at midpoints of [0, 1], and of [1, 2] after them, where it is 1."""
    schedule = KeepSchedule.of(config.flow)
    time = (np.arange(2 * MOMENTS if is_interleaved else MOMENTS) + 0.5) / MOMENTS
    return np.array([schedule.keep_prob(t) for t in np.minimum(time, 1.0).tolist()])


def autoregressive(config: Config, length: int, image_rows: int) -> Mean:
    """The whole document once: causal, and both ways inside the image; logits for every token that is predicted."""
    num_images = int(image_rows > 0)
    rows = length + num_images + image_rows  # the first token is read, the last one is not
    pairs, slots = (rows**2 + image_rows**2) / 2, length + num_images
    return Mean(rows=rows, pairs=pairs, filled=slots, slots=slots, patches=of_pictures(config, image_rows))


def of_pictures(config: Config, patches: float) -> tuple[float, ...]:
    """By modality, of which pictures alone have any."""
    pictures = picture_modality(config)
    return tuple(patches * (modality is pictures) for modality in config.modality.values())


def draw(
    config: Config, length: int, image_rows: int, is_interleaved: bool, documents: int, elements: int = 1
) -> Iterator[list[NoisySample]]:
    """Groups of noised documents; of their patches only `elements` values exist, since nobody looks at them."""
    num_images, pictures = int(image_rows > 0), picture_modality(config)
    sample = Sample(
        key="made-up",
        tokens=np.zeros(1 + length + num_images, dtype=np.int64),
        is_target=np.arange(1 + length + num_images) > 0,
        pieces=tuple(
            Pieces(
                token=np.full(number, 1 + length),
                time=np.ones(number),
                grid=np.array([[1, 1, image_rows]] * number, dtype=np.int64).reshape(-1, 3),
                stride=np.ones(number),
                patches=np.zeros((image_rows * number, elements), dtype=np.float32),
            )
            for number in (num_images * (modality is pictures) for modality in config.modality.values())
        ),
        is_interleaved=is_interleaved,
    )
    flow = replace(config.flow, prompt_dropout_prob=0.0, bags="sampled")
    process = process_of(replace(config, flow=flow), EOS, MARK)
    prepared, rng = process.prepare(sample), keyed_generator(config.run.seed, 0, "FLOPs")
    for first in range(0, documents, PACKED):
        count = min(PACKED, documents - first)
        yield [process.noise(prepared, rng) for _ in range(count)]


def count_groups(config: Config, length: int, image_rows: int, is_interleaved: bool, documents: int) -> list[Counts]:
    """What groups of noised documents hold together, by their packs."""
    groups = draw(config, length, image_rows, is_interleaved, documents)
    return [pack(group, None, sees=config.sees).counts for group in groups]


def count_data(config: Config, steps: int) -> Counts:
    """What the first steps of a run on the config's data hold, on all ranks."""
    loader = PackLoader(replace(config, data=replace(config.data, workers=0)), rank=0, world_size=1)
    packs = (batch for _ in range(steps) for batch in loader.next_step())
    return sum((batch.counts for batch in packs), Counts.zeros())


def standard_error(config: Config, groups: list[Counts]) -> float | None:
    """Of the mean FLOPs of a document, as a share of it; None of one group, which does not know."""
    flops = [sum(flops_of(config, Mean.of_counts(counts)).values()) for counts in groups]
    return float(np.std(flops, ddof=1) / np.mean(flops) / len(flops) ** 0.5) if len(flops) > 1 else None


def count_with_torch(config: Config, length: int, image_rows: int, is_interleaved: bool) -> dict[str, list[float]]:
    """By part, what torch counts of a forward and backward pass over what the formula says, of the same documents."""
    (group,) = draw(config, length, image_rows, is_interleaved, PACKED, picture_modality(config).patch_elements)
    rows = np.cumsum([size_of([noisy]).rows for noisy in group])
    batch = pack(group[: max(1, int(np.searchsorted(rows, COUNTED_ROWS)))], None)
    formula = flops_by_part(config, batch.counts.rows, batch.counts.attention_pairs, batch.counts.filled_slots)
    counted = count_parts(replace(config, train=replace(config.train, activation_checkpointing="none")), batch)
    ratios = {part: [counted[part] / formula[part]] for part in formula}
    return ratios | {f"{OTHERS}, as a share of all": [counted[OTHERS] / sum(formula.values())]}


def count_parts(config: Config, batch: PackedBatch) -> dict[str, float]:
    """What torch's FLOP counter finds in a forward and backward pass, activation checkpointing included.

    Attention counts its pairs, which its tensors' shapes do not tell. With checkpointing only the sum is right: what is
    computed again torch counts for the part whose backward pass needs it, too.
    """
    forward = 4 * config.model.width * batch.counts.attention_pairs
    ops = torch.ops.oneflow
    attention = {
        ops.packed_attention: lambda *_, **__: forward,
        ops.packed_attention_backward: lambda *_, **__: 2.5 * forward,
    }
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = OneFlow(config)
        for block in model.blocks:
            checkpoint_block(block, config.train.activation_checkpointing)
        fake = without_values(batch, mode)
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            compute_losses(model(fake), fake, batch.counts, config).total.backward()
    counts = {name: Counter(of_module) for name, of_module in counter.get_flop_counts().items()}
    whole = counts["Global"]
    pairs = whole[ops.packed_attention] + whole[ops.packed_attention_backward]
    of_blocks = {
        part: sum(counts[f"OneFlow.blocks.{layer}.{part}"].total() for layer in range(config.model.num_layers))
        for part in ("attention", "mlp")
    }
    parts = {
        "attention projections": of_blocks["attention"] - pairs,
        "attention pairs": pairs,
        "mlp": of_blocks["mlp"],
        "logits": whole[ops.product_],
    }
    return {**parts, OTHERS: float(whole.total() - sum(parts.values()))}


def flops_of(config: Config, mean: Mean) -> dict[str, float]:
    """Of a document, by part."""
    return flops_by_part(config, mean.rows, mean.pairs, mean.filled, mean.patches)


def in_gflop(parts: dict[str, float]) -> dict[str, list[float]]:
    """The parts and all of them."""
    return {name: [flops / 1e9] for name, flops in (parts | {"all": sum(parts.values())}).items()}


def ratios_of(config: Config, mean: Mean, rival: Mean) -> dict[str, list[float]]:
    """What a document costs, as a share of what it costs autoregressively."""
    flops, everywhere, of_rival = (
        sum(flops_of(config, each).values()) for each in (mean, replace(mean, filled=mean.slots), rival)
    )
    return {
        "rows": [mean.rows / rival.rows],
        "FLOPs": [flops / of_rival],
        "FLOPs, logits at every slot": [everywhere / of_rival],
    }

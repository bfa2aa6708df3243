"""What a step costs behind a prompt that is kept, and where all rows are computed, by the length of the prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from oneflow_dist.canvas import Canvas, PromptPart, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import Prediction
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.flow.noising import gaussian
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig
from tools.benchmark.result import Measured, Series
from tools.benchmark.sample import first_model
from tools.benchmark.timing import synchronize

FIRST, KEPT, ALL = (
    "ms of the first step, which computes the prompt",
    "ms of a step, prompt kept",
    "ms of a step, all rows",
)
RATIO, DIFFERENCE, KIB = (
    "all rows / prompt kept, medians",
    "largest difference of predictions",
    "KiB kept for a document",
)
ROWS_KEPT, ROWS_ALL = "rows of a step, prompt kept", "rows of a step, all rows"
WRITTEN = 64  # rows behind a prompt; an image that is longer has all of its own
LARGEST_DIFFERENCE = 1e-3
GUIDANCE = 3.0  # of images
NOISE = 0.02  # of the weights
FEWEST, MOST, SECONDS = 3, 15, 6.0  # rounds of a case, and after how long no other begins
NOTE = (
    f"A case is documents in one forward x rows of a prompt that is kept. Behind it stand {WRITTEN} rows that are "
    "being written: open text and, where the config has what can be generated, one such piece in the making. Half of a "
    "prompt's rows are such pieces with their tokens, given, where they fit. A step is one forward with its packing, "
    f"without drawing; guided: with the copies that a weight of {GUIDANCE:g} needs. Weights are random. Both sides "
    "take turns."
)


@dataclass(frozen=True, slots=True)
class Case:
    """Documents with prompts of so many rows, and how they are guided."""

    canvases: list[Canvas]
    sampling: SamplingConfig


def measure(model: OneFlow, config: Config, rows: Sequence[int], documents: Sequence[int]) -> Measured:
    """Every number of documents behind prompts of every length; one document guided, too.

    Args:
        rows: of a prompt.
        documents: in one forward.

    Raises:
        RuntimeError: with prompts kept the model says something else.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    series: Series = {}
    for length in rows:
        for who, case in cases_of(length, documents, config, tokenizer):
            name = f"{who} x {length}"
            for what, values in time_case(model, case, name).items():
                series.setdefault(what, {})[name] = values
    return Measured(series=series, notes=[NOTE])


def cases_of(length: int, documents: Sequence[int], config: Config, tokenizer: Tokenizer) -> Iterator[tuple[str, Case]]:
    """With their names."""
    piece = target_of(config)
    plain = replace(config.sampling, guidance={})
    canvases = [canvas_behind(length, config, tokenizer, index) for index in range(max(documents))]
    for count in documents:
        yield str(count), Case(canvases[:count], plain)
    if piece:
        yield "1 guided", Case(canvases[:1], replace(plain, guidance={piece: GUIDANCE}))


def target_of(config: Config) -> str | None:
    """The first modality that can be generated."""
    return next((kind for kind, modality in config.modality.items() if modality.is_target), None)


def canvas_behind(length: int, config: Config, tokenizer: Tokenizer, index: int) -> Canvas:
    """A document behind a prompt of `length` rows that are kept: that of its last token is the first of the others."""
    rng, kind = np.random.default_rng([config.run.seed, index]), target_of(config)
    prompt = random_prompt(length, kind, config, tokenizer, rng)
    canvas = blank_canvas(prompt, tokenizer, config.modality, config.run.seed, index)
    patches = config.modality[kind].num_rows if kind else 0
    written = rng.integers(tokenizer.bos, size=max(1, WRITTEN - 1 - patches)).tolist()
    if kind:
        written[len(written) // 2] = tokenizer.piece_of[kind]
    for token in written:
        canvas.insert(np.array([len(canvas.tokens) - 1]), np.array([token]), step=1)
    canvas.text_time = 0.5
    return canvas


def random_prompt(
    length: int, kind: str | None, config: Config, tokenizer: Tokenizer, rng: np.random.Generator
) -> list[PromptPart]:
    """Pieces of a modality and as much text in turn, then text; with BOS `length` rows, and one more."""
    prompt: list[PromptPart] = []
    left = length - 1
    if kind:
        modality = config.modality[kind]
        rows = 1 + modality.num_rows
        for _ in range(left // (2 * rows)):
            prompt.append((kind, gaussian(rng, (modality.channels, *modality.shape))))
            prompt += rng.integers(tokenizer.bos, size=rows).tolist()
            left -= 2 * rows
    return prompt + rng.integers(tokenizer.bos, size=left + 1).tolist()


def time_case(model: OneFlow, case: Case, name: str) -> dict[str, list[float]]:
    """Both sides in turn, by what is measured.

    Raises:
        RuntimeError: they say different things.
    """
    kept, anew = (Forward(model, "prompt", keeps) for keeps in (True, False))
    difference = largest_difference(ask(kept, case), ask(anew, case), case.canvases)  # warms up, too
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"prompts {name}: with kept prompts predictions differ by {difference:.2g}, more than "
            f"{LARGEST_DIFFERENCE:g}; keys that are kept are wrong, or products are less exact than float32"
        )
    times: dict[str, list[float]] = {FIRST: [], KEPT: [], ALL: []}
    rows: dict[str, list[float]] = {}
    start = time.perf_counter()
    while len(times[ALL]) < FEWEST or (len(times[ALL]) < MOST and time.perf_counter() - start < SECONDS):
        for canvas in case.canvases:
            kept.forget(canvas.key)
        for what, forward in ((FIRST, kept), (KEPT, kept), (ALL, anew)):
            before = forward.num_rows
            times[what].append(milliseconds(lambda own=forward: ask(own, case), model))  # type: ignore[misc]
            rows[what] = [float(forward.num_rows - before)]
    return {
        **times,
        RATIO: [float(np.median(times[ALL]) / np.median(times[KEPT]))],
        DIFFERENCE: [difference],
        KIB: [kept.num_bytes / 1024 / len(case.canvases)],
        ROWS_KEPT: rows[KEPT],
        ROWS_ALL: rows[ALL],
    }


@torch.no_grad()
def ask(forward: Forward, case: Case) -> Prediction:
    """One forward, as generation asks for it."""
    kinds = list(case.canvases[0].making)
    return predict(
        forward, [canvas.snapshot() for canvas in case.canvases], kinds, [case.sampling] * len(case.canvases), step=1
    )


def largest_difference(one: Prediction, other: Prediction, canvases: Sequence[Canvas]) -> float:
    """Of what is read of two predictions: of open slots and of patches that move."""
    samples = [canvas.snapshot() for canvas in canvases]
    is_open = np.concatenate([sample.is_open for sample in samples])
    parts = [(getattr(one, name), getattr(other, name), is_open) for name in ("zero_logit", "log_rate", "slot_hidden")]
    for kind, (own, its) in enumerate(zip(one.velocity, other.velocity, strict=True)):
        pieces = [sample.pieces[kind] for sample in samples]
        parts.append((own, its, np.concatenate([noisy.pieces.per_patch(noisy.is_moving) for noisy in pieces])))
    differences = [(a - b).abs().cpu()[torch.from_numpy(is_read)] for a, b, is_read in parts]
    return float(torch.cat([difference.flatten() for difference in differences]).max())  # NaN, where any is


def milliseconds(call: Callable[[], object], model: OneFlow) -> float:
    """Of a call, from an idle device to an idle device."""
    device = next(model.parameters()).device
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def random_model(config: Config, device: torch.device) -> OneFlow:
    """First weights, and noise on all of them: without it heads and modulations would be silent."""
    model, generator = first_model(config, device), torch.Generator(device).manual_seed(config.run.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, device=device), alpha=NOISE)
    return model

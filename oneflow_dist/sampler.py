"""Generation: text by insertion and pieces by flow, at once, many documents in one packed sequence."""

# Shapes: N slots of one forward, n of a document, F slots that fire, f of them on this rank, V vocabulary,
# P patches of E elements of one forward, p of a document.

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.clock import at_time
from oneflow_dist.config import Config
from oneflow_dist.containers import Prediction
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.draws import draw_systematically
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig

MAX_LOG_RATE = 80.0  # no rate is larger: its exponential is finite, and a slot with it fires whenever it may
PACK_ROWS = 16384  # documents are packed to at most this for one forward
LOGIT_SLOTS = 512  # whose logits of the whole vocabulary are written at once, where some tokens are to be left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one step did to one document: tokens were inserted, then some were taken back by a correction."""

    document: int  # its number
    place: Int64[np.ndarray, "k"]  # of each inserted token, when all of them are there
    token: Int64[np.ndarray, "k"]
    prob: Float[np.ndarray, "k"]  # of the token, as the model says for its slot: before temperature, top_k and top_p
    removed: Int64[np.ndarray, "r"]  # places of those taken back, before any of them goes
    text_time: float
    piece_times: dict[str, Float[np.ndarray, "_"]]  # by modality, of all its pieces in reading order


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a generation: every document that is not done gets one."""

    number: int  # from 1
    num_rows: int  # that the model computed
    changes: tuple[Change, ...]


def generate(model: OneFlow, canvases: list[Canvas], config: Config, tokenizer: Tokenizer) -> list[Canvas]:
    """Finish the canvases, in place, as [sampling] says; `hit_cap` tells which of them were full."""
    for _ in generate_steps(model, canvases, config, tokenizer):
        pass
    return canvases


def generate_steps(
    model: OneFlow, canvases: list[Canvas], config: Config, tokenizer: Tokenizer, keeps_prompts: bool = True
) -> Iterator[Step]:
    """Generate, and stop after every step for whoever wants to look at the canvases, or at what changed.

    Each step is one forward for the pieces and the text of all documents:

        pieces  Y += min(dt, 1 - t) velocity                    their clocks start when they are inserted
        text    a slot fires with chance (1 - pi) min(1, q max(1, rate)), q the exact insertion probability of the step;
                it then gets one token of its distribution Q; the token of a piece spawns noise

    Where any token is missing, one or more are: a smaller rate is an error of the head. Slots that fire together do not
    know of each other, so a document draws for all of them at once, in a way that neighbours fire in turns (`firing`),
    and steps are smaller towards the end of the text (`time_power`), when what is missing depends most on what has just
    appeared beside it.

    With `blocks`, what is written becomes prompt when it is done, and the document goes on behind it.

    Args:
        keeps_prompts: where `model.prompt_sees` allows it, compute prompts once; the result is the same without.

    Raises:
        FloatingPointError: what the model says is not finite; what went through that forward is as it was before.
        ValueError: two canvases have one key, or blocks are asked for where a hole is not at the end.

    Source: arXiv:2510.03506 Algorithms 1 and 2.
    """
    _check_canvases(canvases, config.sampling)
    forward = Forward(model, config.model.prompt_sees, keeps_prompts)
    schedule, step = KeepSchedule.of(config.flow), 0
    while active := [place for place, canvas in enumerate(canvases) if not canvas.is_done]:
        step += 1
        rows_before, changes = forward.num_rows, []
        for group in _groups(canvases, active):
            changes += _step_group(forward, canvases, group, step, config.sampling, schedule, tokenizer)
        for canvas in (canvases[place] for place in active):
            if canvas.is_done and _goes_on(canvas, config.sampling, tokenizer):
                canvas.begin_block()
            elif canvas.is_done:
                forward.forget(canvas.key)
        yield Step(number=step, num_rows=forward.num_rows - rows_before, changes=tuple(changes))


def _check_canvases(canvases: list[Canvas], sampling: SamplingConfig) -> None:
    keys = collections.Counter(canvas.key for canvas in canvases)
    if len(keys) < len(canvases):
        raise ValueError(f"two documents are called {keys.most_common(1)[0][0]}; give each canvas another index")
    if sampling.blocks and not all(canvas.grows_at_end for canvas in canvases):
        raise ValueError(
            f"sampling.blocks: is {sampling.blocks}, but a prompt has a hole or a piece to make before its end; block "
            "by block a document grows at its end alone: leave them out, or set it to 0"
        )


def _goes_on(canvas: Canvas, sampling: SamplingConfig, tokenizer: Tokenizer) -> bool:
    """Whether a document of blocks, whose block is done, has another one to come."""
    block = canvas.tokens[canvas.block_ends[-1] :]
    is_over = len(block) == 0 or canvas.hit_cap or tokenizer.eos in block
    return len(canvas.block_ends) < sampling.blocks and not is_over


def step_size(canvas: Canvas, sampling: SamplingConfig) -> float:
    """How far the text of a document goes in its next step, along its grid; 0 when it is done."""
    left_after = max(0.0, sampling.steps_after(canvas.text_time) - 1.0)
    return 1.0 - (left_after / sampling.steps) ** sampling.time_power - canvas.text_time


@torch.no_grad()
def _step_group(
    forward: Forward,
    canvases: list[Canvas],
    group: list[int],
    step: int,
    sampling: SamplingConfig,
    schedule: KeepSchedule,
    tokenizer: Tokenizer,
) -> list[Change]:
    """One step of the documents that go through one forward."""
    model, own = forward.model, [canvases[place] for place in group]
    prediction = predict(forward, [c.snapshot() for c in own], list(own[0].making), sampling, step)
    fires = _draw_fires(own, prediction, sampling, schedule)
    firing = torch.from_numpy(np.flatnonzero(np.concatenate(fires))).to(prediction.slot_hidden.device)
    generators = [c.rng for c, fire in zip(own, fires, strict=True) for _ in range(int(fire.sum()))]
    tokens = _draw_tokens(model, prediction.slot_hidden[firing], generators, sampling, tokenizer.vocab_size)
    probs = _probs_of(model, prediction.slot_hidden[firing], tokens)

    patches = [[len(making.pieces.patches) for making in canvas.making.values()] for canvas in own]
    parts = zip(prediction.velocity, zip(*patches, strict=True), strict=True)
    of_kinds = [[part.numpy() for part in velocity.cpu().split(counts)] for velocity, counts in parts]
    first, changes = 0, []
    for number, (canvas, fire) in enumerate(zip(own, fires, strict=True)):
        slots = np.flatnonzero(fire)
        drawn = slice(first, first + len(slots))
        first += len(slots)
        was_writing = canvas.is_writing
        canvas.advance([of_kind[number] for of_kind in of_kinds], step_size(canvas, sampling), sampling, step)
        fits = _fit(canvas, tokens[drawn], sampling.max_rows)
        canvas.insert(slots[fits], tokens[drawn][fits], step)
        is_kept = np.ones(len(canvas.tokens), dtype=bool)
        if was_writing and not canvas.is_writing and canvas.corrections < sampling.corrections:
            is_kept = canvas.rewind(sampling.corrected_from, schedule)
        changes.append(
            Change(
                document=group[number],
                place=slots[fits] + 1 + np.arange(int(fits.sum())),
                token=tokens[drawn][fits],
                prob=probs[drawn][fits],
                removed=np.flatnonzero(~is_kept),
                text_time=canvas.text_time,
                piece_times={kind: np.minimum(1.0, m.pieces.time) for kind, m in canvas.making.items()},
            )
        )
    return changes


def _probs_of(
    model: OneFlow, slot_hidden: Float[Tensor, "F D"], tokens: Int64[np.ndarray, "F"]
) -> Float[np.ndarray, "F"]:
    """Of each token, in the distribution of its slot."""

    def prob(logits: Float32[Tensor, "f V"], own: Int64[Tensor, "f"]) -> Float32[Tensor, "f"]:
        return (logits.gather(1, own[:, None]).squeeze(1) - logits.logsumexp(-1)).exp()

    return _for_slots(model, slot_hidden, tokens, prob) if len(tokens) else np.zeros(0)


def _for_slots(
    model: OneFlow,
    slot_hidden: Float[Tensor, "F D"],
    values: Shaped[np.ndarray, "F"],
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Shaped[np.ndarray, "F"]:
    """What comes of the logits of each slot and its value, written for LOGIT_SLOTS at once.

    Over a tensor axis each rank computes for some slots.
    """
    axis, found = model.axis, []
    for first in range(0, len(values), LOGIT_SLOTS):
        own = torch.from_numpy(values[first : first + LOGIT_SLOTS]).to(slot_hidden.device)
        padding = -len(own) % axis.size
        hidden = F.pad(slot_hidden[first : first + LOGIT_SLOTS], (0, 0, 0, padding))
        dealt = F.pad(own, (0, padding))[axis.local_slice(len(hidden))]
        found.append(axis.gather(compute(axis.deal_rows(model.bag_logits(hidden)), dealt))[: len(own)])
    return torch.cat(found).cpu().numpy()


def _draw_tokens(
    model: OneFlow,
    slot_hidden: Float[Tensor, "F D"],
    generators: list[np.random.Generator],
    sampling: SamplingConfig,
    vocab_size: int,
) -> Int64[np.ndarray, "F"]:
    """A token for each slot that fires, from the generator of its document.

    Logits are written only where some of them are to be left out.

    Args:
        vocab_size: of the tokenizer; the model may have room for more tokens.
    """
    if not generators:
        return np.zeros(0, dtype=np.int64)
    if sampling.top_k == 0 and sampling.top_p >= 1.0:
        keys = np.array([rng.integers(2**63) for rng in generators], dtype=np.int64)
        noise_key = torch.from_numpy(keys).to(slot_hidden.device)
        return model.draw_tokens(slot_hidden, noise_key, sampling.temperature, vocab_size).cpu().numpy()
    draws = np.array([rng.random() for rng in generators])

    def draw(logits: Float32[Tensor, "f V"], own: Float[Tensor, "f"]) -> Int64[Tensor, "f"]:
        logits[:, vocab_size:] = -torch.inf
        return sample_tokens(logits, own, sampling.temperature, sampling.top_p, sampling.top_k)

    return _for_slots(model, slot_hidden, draws, draw)


def _draw_fires(
    canvases: list[Canvas], prediction: Prediction, sampling: SamplingConfig, schedule: KeepSchedule
) -> list[Bool[np.ndarray, "n"]]:
    """Per document, which of its slots get a token in this step."""
    num_slots = [len(canvas.tokens) for canvas in canvases]
    filled_prob = torch.sigmoid(-prediction.zero_logit.double()).cpu().numpy()
    rate = prediction.log_rate.double().clamp(0.0, MAX_LOG_RATE).exp().cpu().numpy()
    fires, first = [], 0
    for canvas, count in zip(canvases, num_slots, strict=True):
        slots = np.arange(first, first + count)[canvas.is_open]
        first += count
        if not canvas.is_writing:
            fires.append(np.zeros(count, dtype=bool))
            continue
        filled, size = filled_prob[slots], rate[slots]
        if sampling.clock_share:
            num_written = int((~canvas.is_given).sum())
            keep_prob = schedule.keep_prob(canvas.text_time)
            filled, size = at_time(filled, size, num_written, keep_prob, sampling.clock_share)
        canvas.lengths = (*canvas.lengths, (count, count + float((filled * size).sum())))
        prob = np.zeros(count)
        q = schedule.insertion_prob(canvas.text_time, step_size(canvas, sampling))
        prob[canvas.is_open] = filled * np.minimum(1.0, q * size)
        is_alone = sampling.firing == "independent"
        fires.append(canvas.rng.random(count) < prob if is_alone else draw_systematically(prob, canvas.rng))
    return fires


def _fit(canvas: Canvas, tokens: Int64[np.ndarray, "F"], max_rows: int) -> Bool[np.ndarray, "F"]:
    """Which tokens the document has room for, rows of pieces counted; in random order, so that no side is favoured.

    What is only ever given is never inserted: its token has never been missing in training.
    """
    rows, may_appear = np.ones(len(tokens), dtype=np.int64), np.ones(len(tokens), dtype=bool)
    for making in canvas.making.values():
        is_piece = tokens == making.token
        rows[is_piece] += making.modality.num_rows
        may_appear[is_piece] = making.modality.is_target
    room = max_rows - canvas.num_rows
    fits = np.zeros(len(tokens), dtype=bool)
    for i in canvas.rng.permutation(len(tokens)):
        fits[i] = rows[i] <= room and may_appear[i]
        room -= rows[i] * fits[i]
    canvas.hit_cap |= not fits[may_appear].all()
    return fits


def sample_tokens(
    logits: Float32[Tensor, "f V"], draws: Float[Tensor, "f"], temperature: float, top_p: float, top_k: int = 0
) -> Int64[Tensor, "f"]:
    """A token for each row of logits, by the inverse of its cumulative distribution at `draws` in [0, 1).

    Args:
        top_p: keep the fewest tokens whose probabilities reach this part of the sum, and those as likely as the last of
            them; of what top_k has left.
        top_k: keep this many of the likeliest tokens, and those as likely as the last of them; 0 keeps all.
    """
    probs = (logits.double() / temperature).softmax(-1)
    if top_k:
        floor = probs.topk(min(top_k, probs.shape[1])).values[:, -1:]
        probs = torch.where(probs >= floor, probs, 0.0)
    if top_p < 1.0:
        descending = probs.sort(-1, descending=True).values
        cumulative = descending.cumsum(-1)
        is_kept = F.pad(cumulative[:, :-1], (1, 0)) < top_p * cumulative[:, -1:]  # those before do not reach it
        floor = descending.where(is_kept, 1.0).amin(-1, keepdim=True)
        probs = torch.where(probs >= floor, probs, 0.0)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1]
    target = _below(draws.to(total) * total, total)
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)


def _below(x: Tensor, limit: Tensor) -> Tensor:
    """`x`, but less than `limit` even where rounding took it there."""
    return torch.minimum(x, torch.nextafter(limit, torch.zeros_like(limit)))


def _groups(canvases: list[Canvas], active: list[int]) -> Iterator[list[int]]:
    """Documents that fit in one forward, in order; a larger one goes alone."""
    group: list[int] = []
    rows = 0
    for place in active:
        if group and rows + canvases[place].num_rows > PACK_ROWS:
            yield group
            group, rows = [], 0
        group.append(place)
        rows += canvases[place].num_rows
    if group:
        yield group

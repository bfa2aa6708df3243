from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.baselines.autoregressive import AutoRegressive
from oneflow_dist.baselines.masked import Masked
from oneflow_dist.config import Config
from oneflow_dist.containers import Sample
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.streams import SourceStream, read_document
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.flow.noising import is_deletable
from oneflow_dist.flow.process import Insertion
from oneflow_dist.process import process_of
from tests.messages import naming

PLAIN = "heads.time_conditioning=none"


def test_each_objective_has_its_process_with_its_knobs(make_config: Callable[..., Config]) -> None:
    assert isinstance(process_of(make_config(), 1, 2), Insertion)
    copies = process_of(make_config("objective.kind=autoregressive", PLAIN, "objective.copies_pieces=true"), 1, 2)
    assert isinstance(copies, AutoRegressive)
    assert (copies.copies_pieces, copies.context_noise, copies.eos, copies.mark) == (True, 0.5, 1, 2)
    masked = process_of(make_config("objective.kind=masked", PLAIN, "objective.canvas_tokens=7"), 1, 2)
    assert isinstance(masked, Masked)
    assert (masked.canvas_tokens, masked.eos, masked.mark) == (7, 1, 2)


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_a_vocabulary_needs_room_for_the_mark(kind: str, make_config: Callable[..., Config]) -> None:
    own = [f"objective.kind={kind}", PLAIN, "data.tokenizer=bytes"]
    with pytest.raises(ValueError, match=naming("model.vocab_size", 262, 263)):
        PackLoader(make_config(*own, "model.vocab_size=262"), 0, 1)
    PackLoader(make_config(*own, "model.vocab_size=263"), 0, 1)
    PackLoader(make_config("data.tokenizer=bytes", "model.vocab_size=262"), 0, 1)


@pytest.mark.parametrize("task", ["infill", "blocks"])
def test_tasks_that_next_tokens_cannot_learn_are_refused(
    task: str, make_config: Callable[..., Config], digits: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        f"sources:\n  single: {{shards: '{digits}/single-train-*.tar', weight: 1, tasks: {{{task}: 1}}}}\n"
    )
    own = [PLAIN, f"data.mixture={mixture}", "data.block_rows=16"]
    with pytest.raises(ValueError, match=naming("single", task, "autoregressive")):
        PackLoader(make_config("objective.kind=autoregressive", *own), 0, 1)
    PackLoader(make_config("objective.kind=masked", *own), 0, 1)


def draw_samples(config: Config, mixture: Path) -> tuple[list[Sample], Tokenizer]:
    """The first samples of the only source of a mixture, prepared."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    (source,) = load_mixture(str(mixture))
    shards = open_shards(source.name, source.shards, source.index)
    stream = SourceStream(source, shards, 0, config, tokenizer, read_document)
    return [sample for sample in map(stream.clean_sample_at, range(60)) if sample is not None], tokenizer


def one_source(folder: Path, digits: Path, task: str) -> Path:
    path = folder / "mixture.yaml"
    shards = digits / "count-train-*.tar"
    path.write_text(f"sources:\n  count: {{shards: '{shards}', weight: 1, tasks: {{{task}: 1}}}}\n")
    return path


def test_every_hole_of_a_masked_sample_is_filled(
    make_config: Callable[..., Config], digits: Path, tmp_path: Path
) -> None:
    config = make_config("objective.kind=masked", "objective.canvas_tokens=4", PLAIN)
    samples, tokenizer = draw_samples(config, one_source(tmp_path, digits, "infill"))
    num_holes = []
    for sample in samples:
        can_go = is_deletable(sample)
        starts, ends = (np.flatnonzero(np.diff(can_go, prepend=False, append=False))[side::2] for side in (0, 1))
        num_holes.append(len(starts))
        assert ((ends - starts) % 4 == 0).all()
        assert not (sample.tokens[~sample.is_target] == tokenizer.eos).any()
    assert max(num_holes) > 1


def test_a_window_leaves_no_end_of_a_piece_behind(
    make_config: Callable[..., Config], digits: Path, tmp_path: Path
) -> None:
    """Of documents in which each piece has a clean copy; only at its beginning one may be left of a piece."""
    config = make_config(
        *("objective.kind=autoregressive", "objective.copies_pieces=true", PLAIN),
        *("data.max_sample_rows=24", "data.overlong=window"),
    )
    samples, tokenizer = draw_samples(config, one_source(tmp_path, digits, "interleaved"))
    image, lengths = tokenizer.piece_of["image"], []
    for sample in samples:
        lengths.append(sample.num_rows)
        marks = np.flatnonzero(sample.tokens == tokenizer.mark)
        assert (sample.tokens[marks[marks > sample.front] - 1] == image).all()
        assert set(marks) <= set(sample.pieces[0].token)
    assert max(lengths) <= 24
    assert sum(length > 18 for length in lengths) > 20

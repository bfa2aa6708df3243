from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import estimate
from oneflow_dist.planning.events import SWAP, UPDATE, Call, Collective, Send, Stretch, Work
from oneflow_dist.planning.gpus import GIB, GPUS
from oneflow_dist.planning.trace import Trace
from tools.comparison.context_plans import ROWS, SIZES, Planned, config_of, draw, page


def planned(context: int, root: Path) -> Planned:
    """Made up: a product and what all ranks of the axis send to each other."""
    sent = Send(Collective(SWAP, "context", GIB), is_fsdp=False)
    product = Work(False, ((Call("blocks", "mm", 1, 10**15), 1),))
    trace = Trace(
        mesh=(1, 64 // context, context, 1),
        rows_per_pack=ROWS,
        num_parameters=10**9,
        checkpoint_bytes=10**9,
        held={},
        peaks={"update": {"activations": 160 * GIB // context}},
        stretches=(Stretch("microbatch", 1, (product, sent)), Stretch(UPDATE, 1, ())),
    )
    own = estimate(trace, config_of(context, root), Cluster(gpu=GPUS["h100-80gb"]))
    return Planned(context=context, trace=trace, estimate=own, faster=own)


@pytest.mark.parametrize("context", SIZES)
def test_every_group_of_ranks_has_one_pack_of_one_document(context: int, root: Path) -> None:
    config = config_of(context, root)
    assert config.data.packs_per_step * context == 64
    assert config.data.rows_per_pack == config.data.max_sample_rows == ROWS


def test_a_page_says_what_fits_and_for_what_a_rank_waits(root: Path) -> None:
    one, four = planned(1, root), planned(4, root)
    lines = page([one, four]).splitlines()
    assert lines[-2].startswith("| 1 | 64 | 160.0 | no |")
    assert lines[-1].startswith("| 4 | 16 | 40.0 | yes |")
    assert f"| {four.exposed['context']:.1%} |" in lines[-1]
    assert four.exposed["context"] > one.exposed["context"] > 0.0


def test_a_picture_has_bars_of_every_kind_and_size(root: Path) -> None:
    (panel,) = draw([planned(1, root), planned(4, root)]).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "4"]
    heights = {round(patch.get_height()) for patch in panel.patches}
    assert heights == {0, 160, 40}

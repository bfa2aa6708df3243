"""One second of work is a call of one byte; a gather takes 2 s, a scatter 3, a sum over copies 4."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from oneflow_dist.planning import timeline
from oneflow_dist.planning.cluster import Cluster, MeshShape
from oneflow_dist.planning.events import GATHER, REDUCE, SCATTER, Await, Call, Collective, Event, Send, Stretch, Work
from oneflow_dist.planning.gpus import GPUS
from oneflow_dist.planning.timeline import DEVICE, Bar, Timeline, Wait, lay_out

SECONDS = {GATHER: 2.0, SCATTER: 3.0, REDUCE: 4.0}


def work(seconds: int, is_backward: bool = False) -> Work:
    return Work(is_backward, ((Call("blocks", "mm", seconds, 0), 1),))


def of_fsdp(kind: str, group: str = "shard") -> Send:
    return Send(Collective(kind, group, 1), is_fsdp=True)


def inline(kind: str) -> Send:
    return Send(Collective(kind, "tensor", 1), is_fsdp=False)


@pytest.fixture(autouse=True)
def _links(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(collective: Collective, mesh: MeshShape, cluster: Cluster) -> float:
        return SECONDS[collective.kind]

    monkeypatch.setattr(timeline, "link_seconds", seconds)


def run(*events: Event, is_async: bool = False) -> Timeline:
    return run_all([Stretch("microbatch", 1, events)], is_async)


def run_all(stretches: Sequence[Stretch], is_async: bool = False) -> Timeline:
    cluster = Cluster(gpu=GPUS["h100-80gb"])
    return lay_out(stretches, (1, 4, 1, 4), cluster, lambda call: float(call.num_bytes), is_async)


def spans(found: Timeline, lane: str) -> list[tuple[float, float]]:
    return [(bar.start, bar.end) for bar in found.bars if bar.lane == lane]


GET = (of_fsdp(GATHER), Await("gather"))


def test_the_gather_of_the_next_block_begins_with_the_work_on_this_one() -> None:
    found = run(*GET, work(5), *GET, work(5), *GET, work(5))
    assert spans(found, "shard") == [(0, 2), (2, 4), (7, 9)]
    assert spans(found, DEVICE) == [(2, 7), (7, 12), (12, 17)]
    assert found.exposed == {"shard": 2.0}  # of the first alone
    assert found.seconds == 17.0


def test_gathers_longer_than_work_come_one_after_the_other_and_the_device_waits() -> None:
    found = run(*GET, work(1), *GET, work(1), *GET, work(1))
    assert spans(found, "shard") == [(0, 2), (2, 4), (4, 6)]
    assert found.exposed == {"shard": 4.0}
    assert found.waits == [Wait("shard", 0, 2), Wait("shard", 3, 4), Wait("shard", 5, 6)]


def test_a_scatter_lies_behind_the_work_on_the_next_block_and_is_awaited_before_the_next_scatter() -> None:
    release = (Await("scatter"), of_fsdp(SCATTER))
    found = run(work(5, True), *release, work(1, True), *release, Await("all"))
    assert spans(found, "shard") == [(5, 8), (8, 11)]
    assert found.exposed == {"shard": 2.0 + 3.0}  # for the buffer; and all of the last
    assert found.seconds == 11.0


def test_the_sum_over_copies_follows_the_scatter_on_its_own_link() -> None:
    release = (Await("scatter"), of_fsdp(SCATTER), of_fsdp(REDUCE, "replicate"))
    found = run(work(5, True), *release, work(5, True), *release, Await("all"))
    assert spans(found, "shard") == [(5, 8), (10, 13)]
    assert spans(found, "replicate") == [(8, 12), (13, 17)]
    assert found.exposed == {"replicate": 2.0 + 4.0, "shard": 1.0}  # of what is under way, the one that ends first


def test_a_gather_that_was_launched_after_a_scatter_waits_for_the_link() -> None:
    found = run(work(5, True), Await("scatter"), of_fsdp(SCATTER), of_fsdp(GATHER), work(1, True), Await("gather"))
    assert spans(found, "shard") == [(5, 8), (8, 10)]
    assert found.exposed == {"shard": 4.0}


def test_other_collectives_are_waited_for_where_they_stand() -> None:
    found = run(work(5), inline(GATHER), work(5), inline(SCATTER), work(5))
    assert found.exposed == {"tensor": 5.0}
    assert found.seconds == 20.0


def test_asynchronous_tensor_collectives_lie_beside_their_products_but_for_a_piece() -> None:
    found = run(work(5), inline(GATHER), work(5), inline(SCATTER), work(5), is_async=True)
    assert found.exposed == {"tensor": pytest.approx(2.0 / 4 + 3.0 / 4)}
    short = run(inline(GATHER), work(1), is_async=True)
    assert short.seconds == 2.0  # the link still takes its time


def test_stretches_follow_each_other_and_add_up() -> None:
    one = Stretch("microbatch", 1, (*GET, work(5), Await("all")))
    found = run_all([one, Stretch("update", 3, (work(1),))])
    assert found.bars[-1] == Bar(DEVICE, "update", 7.0, 8.0)
    assert (found.seconds, found.compute) == (8.0, 6.0)
    assert found.busy == {"shard": 2.0}

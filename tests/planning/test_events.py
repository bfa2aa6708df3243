from __future__ import annotations

import pytest

from oneflow_dist.planning.events import (
    GATHER,
    REDUCE,
    SCATTER,
    UPDATE,
    Await,
    Call,
    Collective,
    Event,
    Send,
    Stretch,
    Work,
    joined,
    with_more_layers,
    without_order,
)

MM, ADD, LOOK = (Call("blocks", name, 100, flops) for name, flops in (("mm", 10), ("add", 0), ("embedding", 0)))
WEIGHTS = Send(Collective(GATHER, "shard", 64), is_fsdp=True)
GRADIENTS = Send(Collective(SCATTER, "shard", 64), is_fsdp=True)


def work(*calls: Call, is_backward: bool = False) -> Work:
    (joint,) = joined([(is_backward, call) for call in calls])
    assert isinstance(joint, Work)
    return joint


def test_calls_that_follow_each_other_are_one_work_but_not_over_the_turn_to_the_backward_pass() -> None:
    found = joined([(False, MM), (False, ADD), (False, MM), WEIGHTS, Await("gather"), (False, ADD), (True, ADD)])
    assert found == (
        Work(False, ((ADD, 1), (MM, 2))),
        WEIGHTS,
        Await("gather"),
        Work(False, ((ADD, 1),)),
        Work(True, ((ADD, 1),)),
    )


def test_a_stretch_counts_what_it_does_once() -> None:
    calls, sent = Stretch("x", 7, (work(MM, MM), WEIGHTS, work(ADD), WEIGHTS)).count()
    assert calls == {MM: 2, ADD: 1}
    assert sent == {WEIGHTS.collective: 2}


def passes(layers: int) -> tuple[Event, ...]:
    """As FSDP runs them; the embedding's work grows with the layers, and the last layer's runs on into the head's."""
    lookup = work(Call("rest", "embedding", 10 * layers, 0))
    block, back = work(MM, ADD), work(MM, MM, ADD, is_backward=True)
    forward: list[Event] = [WEIGHTS, Await("gather"), lookup]
    for layer in range(layers):
        forward += [WEIGHTS, Await("gather"), block if layer < layers - 1 else work(MM, ADD, LOOK)]
    backward: list[Event] = [work(LOOK, is_backward=True)]
    for layer in range(layers):
        backward += [Await("gather"), *[WEIGHTS] * (layer < layers - 1), back, Await("scatter"), GRADIENTS]
    return (*forward, *backward, Await("all"))


@pytest.mark.parametrize("layers", [2, 3, 9])
def test_two_and_three_layers_tell_the_order_of_all(layers: int) -> None:
    two, three, all_of_them = (Stretch("microbatch", 1, passes(count)) for count in (2, 3, layers))
    assert with_more_layers(two, three, layers - 2) == all_of_them


@pytest.mark.parametrize("layers", [2, 3, 9])
def test_layers_between_which_nothing_is_sent_are_one_work_that_grows(layers: int) -> None:
    def run(count: int) -> Stretch:
        back = [each for _ in range(count) for each in (work(MM, is_backward=True), GRADIENTS)]
        return Stretch("microbatch", 1, (work(*[MM, ADD] * count, LOOK), *back, Await("all")))

    assert with_more_layers(run(2), run(3), layers - 2) == run(layers)


def update(layers: int) -> tuple[Event, ...]:
    """A call and a collective a layer, and one of each for all."""
    each = [(False, ADD)] * layers + [Send(Collective(GATHER, "all", 8), is_fsdp=False)] * layers
    norm = Send(Collective(REDUCE, "all", 4 * layers), is_fsdp=False)
    return without_order(joined([norm, (False, Call("AdamW", "adam", 8 * layers, 2 * layers)), *each]))


def test_of_an_update_each_layer_adds_calls_and_what_is_for_all_grows() -> None:
    two, three, seven = (Stretch(UPDATE, 1, update(count)) for count in (2, 3, 7))
    assert with_more_layers(two, three, 5) == seven

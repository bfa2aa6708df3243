from __future__ import annotations

from collections.abc import Callable

import pytest

from oneflow_dist.config import Config
from oneflow_dist.planning.counter import BLOCKS
from oneflow_dist.planning.events import Call
from oneflow_dist.planning.gpus import GPUS
from oneflow_dist.planning.rates import Pricing, Rates

H100 = GPUS["h100-80gb"]
RATES = Rates.of(H100)


@pytest.fixture(scope="module")
def pricing(make_config: Callable[..., Config]) -> Callable[..., Pricing]:
    def make(*overrides: str, keys: float = 100.0) -> Pricing:
        return Pricing.of(make_config("train.precision=bf16", *overrides), Rates.of(H100), keys)

    return make


def test_rates_follow_the_data_sheet() -> None:
    other = Rates.of(GPUS["a100-80gb"])
    assert other.products / RATES.products == pytest.approx(312 / 989)
    assert other.memory / RATES.memory == pytest.approx(2039 / 3350)


@pytest.mark.parametrize(("keys", "measured"), [(330, 172e12), (16384, 328e12), (3000, 301e12), (1500, 277e12)])
def test_attention_has_the_rates_that_were_measured_for_documents_of_every_length(keys: int, measured: float) -> None:
    assert RATES.attention_of(keys) == pytest.approx(measured, rel=0.01)


def test_a_product_takes_its_flops_or_its_bytes_whichever_is_more(pricing: Callable[..., Pricing]) -> None:
    price = pricing()
    assert price.seconds(Call(BLOCKS, "mm", 10**6, 10**12)) == pytest.approx(1e12 / RATES.products)
    assert price.seconds(Call(BLOCKS, "mm", 10**9, 10**9)) == pytest.approx(1e9 / RATES.memory)


def test_products_have_the_rate_of_their_precision(pricing: Callable[..., Pricing]) -> None:
    product = Call(BLOCKS, "mm", 1, 10**12)
    eighth = Call(BLOCKS, "_scaled_mm", 1, 10**12)
    assert pricing().seconds(eighth) == pytest.approx(1e12 / RATES.float8)
    assert pricing("train.precision=fp32").seconds(product) == pytest.approx(1e12 / RATES.float32)


def test_attention_takes_longer_for_the_same_flops_where_rows_meet_few_keys(pricing: Callable[..., Pricing]) -> None:
    call = Call(BLOCKS, "packed_attention", 1, 10**12)
    few, many = pricing(keys=100.0).seconds(call), pricing(keys=10000.0).seconds(call)
    assert few / many == pytest.approx((100 + 311) / 100 / ((10000 + 311) / 10000))


def test_a_compiled_block_moves_less_than_one_call_by_call(pricing: Callable[..., Pricing]) -> None:
    call = Call(BLOCKS, "mul", 10**9, 0)
    assert pricing("train.compile=true").seconds(call) == pytest.approx(0.195e9 / RATES.memory)
    assert pricing("train.compile=false").seconds(call) == pytest.approx(0.48e9 / RATES.memory)


def test_outside_of_blocks_small_calls_take_a_launch_and_the_average_its_share_of_steps(
    pricing: Callable[..., Pricing],
) -> None:
    price = pricing("optim.ema_every_steps=4")
    assert price.seconds(Call("AdamW", "mul", 10, 0)) == RATES.launch
    assert price.seconds(Call("moving average", "lerp", 10, 0)) == RATES.launch / 4
    assert price.seconds(Call("moving average", "lerp", 10**9, 0)) == pytest.approx(1e9 / RATES.memory / 4)
    assert price.share_of_bytes(Call("moving average", "lerp", 10, 0)) == 0.25

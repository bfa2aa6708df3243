"""The passes that a document of a given length takes, by counts; and how long they would take on a GPU."""

# Shapes: a prompt of P tokens behind the first one, L text tokens, images of R rows, which take S steps each.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from oneflow_dist.config import PRODUCTS, Config
from oneflow_dist.model.flops import product_shape, weights_of_patch
from oneflow_dist.planning.gpus import Gpu
from oneflow_dist.planning.rates import Rates
from tools.benchmark.result import Measured, Series

Way = Literal["insertion", "autoregressive", "autoregressive without cache"]
INSERTION: Way = "insertion"
CACHED: Way = "autoregressive"
ANEW: Way = "autoregressive without cache"
WAYS = (INSERTION, CACHED, ANEW)
# What the kernels of a compiled block read and write beside products and attention, forward and backward, for each row:
# so many elements in widths of the trunk (norms, residuals, rotation), and so many in widths of the MLP (SwiGLU). From
# the profile on an H100 that `Rates.compiled` is from.
WIDTHS_A_ROW, MLP_WIDTHS_A_ROW = 22.0, 9.0
FORWARD = 1.0 / 3.0  # of them
KEYS = 330.0  # that a row meets, for the rate of attention
BYTES = 2.0  # of a value in bfloat16
# Kernels of a compiled block: four products, attention, and what is fused between them (norm, rotation, norm, SwiGLU,
# sum); then keys and values, which are stacked to be kept, and joined with those before.
LAUNCHES_A_LAYER = 4 + 1 + 5 + 3
LAUNCHES_OUTSIDE = 24  # embedding, adapters, rotation tables, last norm, heads, drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A document whose length is forced."""

    prompt: int  # tokens behind the first one
    text: int  # tokens that are written, images not counted
    images: int
    image_rows: int
    steps: int  # of an image; and of a text by insertion
    copies: bool = True  # autoregressive: done images have clean copies behind them, see [objective]

    @property
    def order(self) -> list[bool]:
        """Of each token in the order of reading whether it is an image: they stand evenly in the text."""
        places = [self.text * (number + 1) // (self.images + 1) for number in range(self.images)]
        found = []
        for place in range(self.text + 1):
            found += [True] * places.count(place) + [False] * (place < self.text)
        return found

    @property
    def appearing(self) -> list[tuple[int, int]]:
        """Text tokens and images that appear in each step of the text by insertion, where both come evenly."""
        text = [self.text * step // self.steps for step in range(self.steps + 1)]
        born = [self.steps * (number + 1) // (self.images + 1) for number in range(self.images)]
        return [(text[step + 1] - text[step], born.count(step)) for step in range(self.steps)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one forward computes of one document."""

    rows: int
    keys: int  # that are read, of earlier passes too
    pairs: int  # of a row and a key that it sees
    patches: int = 0  # that go through the adapter
    drawn: int = 0  # tokens


def passes_of(way: Way, shape: Shape) -> Iterator[Pass]:
    """All passes of a document, as `Forward` makes them for the writers."""
    if way == INSERTION:
        return _by_insertion(shape)
    return _token_by_token(shape) if way == CACHED else _token_by_token_anew(shape)


def _by_insertion(shape: Shape) -> Iterator[Pass]:
    """The prompt once, whose rows see each other; then all that is written, in every step, behind it."""
    if shape.prompt:
        yield Pass(rows=shape.prompt, keys=shape.prompt, pairs=shape.prompt**2)
    rows = 1  # that of the prompt's last token is the first of what is written
    ages: list[int] = []
    for step, (text, images) in enumerate([*shape.appearing, *[(0, 0)] * shape.steps]):
        if step >= shape.steps and all(age >= shape.steps for age in ages):
            return
        keys = shape.prompt + rows
        yield Pass(rows=rows, keys=keys, pairs=rows * keys, patches=len(ages) * shape.image_rows, drawn=text + images)
        rows += text + images * (1 + shape.image_rows)
        ages = [*(age + 1 for age in ages), *[0] * images]


def _token_by_token(shape: Shape) -> Iterator[Pass]:
    """A row for each token that is drawn; `<|eos|>` is the last of them.

    Of an image a row for its token, its patches in each step, once more when it is done, and those of its copy.
    Whatever follows is drawn from the row of the mark that ends it.
    """
    kept, size = shape.prompt, shape.image_rows
    if kept:
        yield Pass(rows=kept, keys=kept, pairs=_causal(kept))
    for is_image in [*shape.order, False]:
        kept += 1
        yield Pass(rows=1, keys=kept, pairs=kept, drawn=1)
        if is_image:
            kept += 1
            yield Pass(rows=1, keys=kept, pairs=kept)
            seen = [kept + size] * (shape.steps + 1) + [kept + 2 * size] * shape.copies
            yield from (Pass(rows=size, keys=keys, pairs=size * keys, patches=size) for keys in seen)
            kept = seen[-1]


def _token_by_token_anew(shape: Shape) -> Iterator[Pass]:
    """All rows for each token that is drawn, and for each step of an image."""
    rows, size, inside = shape.prompt + 1, shape.image_rows, shape.image_rows * (shape.image_rows - 1) // 2
    num_seen = 0  # pieces, copies too, whose rows see all of them
    for is_image in [*shape.order, False]:
        pairs, patches = _causal(rows) + num_seen * inside, num_seen * size
        yield Pass(rows=rows, keys=rows, pairs=pairs, patches=patches, drawn=1)
        rows += 1
        if is_image:
            rows, num_seen = rows + size, num_seen + 1
            pairs, patches = _causal(rows) + num_seen * inside, num_seen * size
            yield from [Pass(rows=rows, keys=rows, pairs=pairs, patches=patches)] * shape.steps
            rows, num_seen = rows + 1 + size * shape.copies, num_seen + shape.copies


def _causal(rows: int) -> int:
    """Pairs where each row sees itself and those before it."""
    return rows * (rows + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What passes of a model cost on one GPU.

        products    2 * (trunk weights * rows + unembedding * drawn + adapter weights * patches) / rate of products
        attention   4 * width * layers * pairs / rate of attention
        memory      (weights that are used, once + keys and values of all rows seen) * 2 bytes / rate of memory
        rest        (22 widths + 9 MLP widths) / 3 * layers * rows * 2 bytes / rate of memory
        launches    (13 * layers + 24) * seconds of a launch

    A pass takes the larger of products with attention, and memory; then the rest of its blocks, which are kernels of
    their own, and its launches, as if nothing hid them.
    """

    trunk: float  # weights of the products of all layers
    unembedding: float
    adapter: float  # that a patch meets
    pair: float  # FLOPs
    key: float  # values that are kept of a row
    row: float  # values that are read and written of a row beside products and attention
    launches: int
    rates: Rates

    @classmethod
    def of(cls, config: Config, rates: Rates) -> Costs:
        """Those of a config; images are of the first modality that can be generated."""
        model, layers = config.model, config.model.num_layers
        shapes = [product_shape(name, model) for name in PRODUCTS]
        made = next((modality for modality in config.modality.values() if modality.is_target), None)
        return cls(
            trunk=layers * sum(outputs * inputs for outputs, inputs in shapes),
            unembedding=model.width * model.vocab_size,
            adapter=weights_of_patch(made, model.width) if made else 0,
            pair=4.0 * model.width * layers,
            key=2.0 * model.width // model.num_attention_heads * model.num_kv_heads * layers,
            row=FORWARD * layers * (WIDTHS_A_ROW * model.width + MLP_WIDTHS_A_ROW * model.mlp_width),
            launches=LAUNCHES_A_LAYER * layers + LAUNCHES_OUTSIDE,
            rates=rates,
        )

    def work(self, own: Pass, documents: int) -> float:
        """Seconds of a pass over so many documents that are alike, launches left out."""
        rates, weights = self.rates, self.trunk
        weights += (own.drawn > 0) * self.unembedding + (own.patches > 0) * self.adapter
        multiplied = own.rows * self.trunk + own.drawn * self.unembedding + own.patches * self.adapter
        computing = 2.0 * multiplied / rates.products + own.pairs * self.pair / rates.attention_of(KEYS)
        reading = BYTES * (weights + documents * own.keys * self.key) / rates.memory
        return max(documents * computing, reading) + BYTES * documents * own.rows * self.row / rates.memory

    @property
    def waiting(self) -> float:
        """Seconds of the launches of a pass."""
        return self.launches * self.rates.launch


def case_of(way: str, shape: Shape, documents: int) -> str:
    """As results call it: who x text tokens."""
    return f"{shape.images} images, {documents} at once, {way} x {shape.text}"


def plan(config: Config, gpu: Gpu, shapes: Sequence[Shape], documents: Sequence[int]) -> Measured:
    """Every document in every way on one GPU, so many at once."""
    costs = Costs.of(config, Rates.of(gpu))
    seconds, launches, forwards, rows = (
        f"{what} by plan, {gpu.name}"
        for what in ("seconds", "of them launches", "forwards", "rows computed for a document")
    )
    series: Series = {seconds: {}, launches: {}, forwards: {}, rows: {}}
    for shape in shapes:
        for way in WAYS:
            passes = [*passes_of(way, shape)]
            for count in documents:
                name, waiting = case_of(way, shape, count), len(passes) * costs.waiting
                series[seconds][name] = [sum(costs.work(own, count) for own in passes) + waiting]
                series[launches][name] = [waiting]
                series[forwards][name] = [float(len(passes))]
                series[rows][name] = [float(sum(own.rows for own in passes))]
    model, rates = config.model, costs.rates
    note = (
        f"By plan: {model.num_layers} layers of width {model.width} in bfloat16, {shapes[0].image_rows} rows an image. "
        "A forward takes the larger of (FLOPs of products / their rate + FLOPs of attention / its rate) and (all "
        "weights it uses once, keys and values it reads / rate of memory); then what its blocks read and write besides "
        f"(a third of forward and backward), and {costs.launches} launches of {1e6 * rates.launch:g} us, compiled "
        f"blocks, one after the other. Rates of {gpu.name}: products {rates.products / 1e12:.0f} TFLOP/s, attention "
        f"{rates.attention_of(KEYS) / 1e12:.0f}, memory {rates.memory / 1e12:.2f} TB/s. The host keeps up; "
        "drawing and moving patches cost nothing."
    )
    return Measured(series=series, notes=[note])

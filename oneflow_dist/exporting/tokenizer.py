"""A ranks file as the tokenizer of transformers: the same ids for the same text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from oneflow_dist.data.tokenizer import CUT_PATTERN, Tokenizer, byte_of_character


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    special = {text: tokenizer.encoding.encode_single_token(text) for text in tokenizer.encoding.special_tokens_set}
    ranks = {tokenizer.encoding.decode_single_token_bytes(rank): rank for rank in range(min(special.values()))}
    table = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for text, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": CUT_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": True, "byte_fallback": False, **_vocabulary(ranks)},
    }
    (folder / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,  # documents are as long as `max_rows` of the settings says
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _vocabulary(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Tokens and merges in the printable alphabet of byte-level encodings."""
    character_of = {byte: character for character, byte in byte_of_character().items()}

    def spell(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    merges = [[spell(part) for part in pair] for token in ranks if (pair := find_merge(token, ranks)) is not None]
    return {"vocab": {spell(token): rank for token, rank in ranks.items()}, "merges": merges}


def find_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that a token is merged from, by the merges that come before it; None for a single byte.

    A ranks file does not say: it is what is left of the token's bytes when all earlier merges have been made. None,
    too, where more than two are left: such a token only stands where all of a text's stretch is it.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, ranks[token]) for a, b in itertools.pairwise(parts)]
        first = min(range(len(joined)), key=joined.__getitem__)
        if joined[first] >= ranks[token]:
            return None
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None

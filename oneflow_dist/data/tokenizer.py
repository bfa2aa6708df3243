"""Text to token ids and back, with the special tokens that documents are made of."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import tiktoken

from oneflow_dist.files import naming
from oneflow_dist.modality import Modalities

ROLES = ("user", "assistant", "system")  # of the turns of a conversation
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|image|>", *(f"<|{role}|>" for role in ROLES))

# How text is cut before merging: contractions, words with one leading mark or blank, up to three digits, punctuation,
# line ends, blanks. The cut of the Llama 3 vocabulary, so that its ranks file gives its ids.
CUT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MAX_BLANKS = 100_000  # in a row: at a million tiktoken ends the process
BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Byte-pair encoding with special tokens after the last rank."""

    encoding: tiktoken.Encoding
    content: bytes = field(repr=False)  # of its ranks file; "bytes" for that of single bytes
    sha256: str  # of the content
    bos: int
    eos: int  # after the last block of a document
    piece_of: dict[str, int]  # modality -> the token that stands for one of its pieces
    role_of: dict[str, int]  # role -> the token with which its turns begin
    separator: tuple[int, ...]  # between two texts of a document: an empty line

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    @property
    def mark(self) -> int:
        """What an objective lays between tokens, beyond the vocabulary: it is never written, and never drawn."""
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens spelled out in `text` stay text.

        Raises:
            ValueError: more than `MAX_BLANKS` blanks in a row.
        """
        longest = max(map(len, BLANKS.findall(text)), default=0) if len(text) > MAX_BLANKS else 0
        if longest > MAX_BLANKS:
            raise ValueError(f"a text with {longest} blanks in a row, more than {MAX_BLANKS}; shorten or remove it")
        return self.encoding.encode_ordinary(text)

    def decode(self, tokens: list[int]) -> str:
        """Text, special tokens spelled out, marks left out; bytes that are no UTF-8 become U+FFFD."""
        return self.encoding.decode([token for token in tokens if token != self.mark])


def load_tokenizer(path: str, modalities: Modalities | None = None) -> Tokenizer:
    """Read a tiktoken ranks file, or make the byte-level tokenizer for "bytes".

    Args:
        path: of the file; "#sha256:" and 64 hex digits after it are compared with the file's.
        modalities: whose tokens are special, too; those that no tokenizer has come last, in their order.

    Raises:
        ValueError: no such file, not a ranks file, or not the one that the checksum is of.
    """
    return _load(path, tuple((name, modality.token) for name, modality in (modalities or {}).items()))


@functools.cache
def _load(path: str, pieces: tuple[tuple[str, str], ...]) -> Tokenizer:
    path, _, expected = path.partition("#sha256:")
    content = b"bytes"
    if path != "bytes":
        if not Path(path).is_file():
            raise ValueError(f'{path}: no such tokenizer file; set data.tokenizer to a tiktoken ranks file or "bytes"')
        content = Path(path).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if expected and expected != sha256:
        raise ValueError(f"{path}: its sha256 is {sha256}, not {expected}; copy the file again or mend data.tokenizer")
    ranks = {bytes([value]): value for value in range(256)} if path == "bytes" else _read_ranks(path, content)
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *(token for _, token in pieces)])
    special = {name: len(ranks) + i for i, name in enumerate(tokens)}
    encoding = tiktoken.Encoding(path, pat_str=CUT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(
        encoding=encoding,
        content=content,
        sha256=sha256,
        bos=special["<|bos|>"],
        eos=special["<|eos|>"],
        piece_of={name: special[token] for name, token in pieces},
        role_of={role: special[f"<|{role}|>"] for role in ROLES},
        separator=tuple(encoding.encode_ordinary("\n\n")),
    )


def train_ranks(texts: list[str], vocab_size: int) -> dict[bytes, int]:
    """Byte-pair ranks learned on `texts`: the 256 bytes, then at most `vocab_size - 256` merges."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

    cut = pre_tokenizers.Split(Regex(CUT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    byte_of = byte_of_character()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes(byte_of[c] for c in token): rank for rank, (token, _) in enumerate(vocabulary)}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    """Write a tiktoken ranks file: a line for each token, base64, blank, rank."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    with naming(path):
        path.write_text("".join(lines))


def _read_ranks(path: str, content: bytes) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not base64, blank, rank: {line[:40]!r}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: ranks are not 0 to {len(ranks) - 1}, each once; is the file cut off?")
    missing = sum(bytes([value]) not in ranks for value in range(256))
    if missing:
        raise ValueError(
            f"{path}: {missing} of the 256 bytes have no rank, so not every text has tokens; is it cut off?"
        )
    return ranks


def byte_of_character() -> dict[str, int]:
    """The byte that each printable character of the byte-level alphabet stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + i): value for i, value in enumerate(others)}

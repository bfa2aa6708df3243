"""What gives the numbers of a run their meaning: its vocabulary, its latents, its sources; compared when it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneflow_dist.data.mixture import Source
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.tar import DIMENSIONS
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import BESIDE, PIXELS


def describe_data(sources: Sequence[Source], shards: Sequence[ShardSet], tokenizer: Tokenizer) -> dict[str, Any]:
    """A table of plain values, which a checkpoint holds.

    Raises:
        ValueError: images of two autoencoders, whose latents mean different things.
    """
    table = {
        source.name: {
            "shards": len(of_source.paths),
            "samples": len(of_source),
            "sha256": _hash_shards(of_source),
            "weight": source.weight / sum(each.weight for each in sources),
            "reading": hashlib.sha256(repr(_without(source, "weight", "shards", "index")).encode()).hexdigest(),
        }
        for source, of_source in zip(sources, shards, strict=True)
    }
    return {
        "tokenizer": tokenizer.sha256,
        "pieces": tokenizer.piece_of,
        "latents": _find_latents(shards, tokenizer.piece_of),
        "sources": table,
        "working_folder": str(Path.cwd()),  # where relative paths of the config begin
    }


def compare_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed since a checkpoint, a line each, where it changes the course of a run and nothing else.

    Raises:
        ValueError: token ids or latents have changed their meaning.
    """
    if not before:  # weights that a run starts from
        return []
    if before["tokenizer"] != now["tokenizer"]:
        raise ValueError(
            f"data.tokenizer: the checkpoint's token ids are of another ranks file (sha256 {before['tokenizer']}, "
            f"this one {now['tokenizer']}); bring that one back (the checkpoint has a copy), or start anew"
        )
    for kind, token in before["pieces"].items():
        if now["pieces"].get(kind, token) != token:
            raise ValueError(
                f"modality.{kind}.token: the checkpoint's has the id {token}, this one {now['pieces'][kind]}; keep its "
                "modalities, in their order, and add others after them, or start anew"
            )
    old, new = before["latents"], now["latents"]
    if old and new and old["sha256"] != new["sha256"]:
        raise ValueError(
            f"data.mixture: the checkpoint was trained on latents of {_name(old)}, but its images are now "
            f"those of {_name(new)}; take the data of that autoencoder, or start anew"
        )
    lines = []
    for name in dict.fromkeys([*before["sources"], *now["sources"]]):
        old, new = before["sources"].get(name), now["sources"].get(name)
        if old is None or new is None:
            lines.append(f"source {name}: {'new in' if old is None else 'no longer in'} the mixture")
        elif old["sha256"] != new["sha256"]:
            counts = f"{old['shards']} shards, {old['samples']} samples; now {new['shards']}, {new['samples']}"
            lines.append(f"source {name}: its shards are others ({counts}): its order in this pass is, too")
        if old and new and old["reading"] != new["reading"]:
            lines.append(f"source {name}: its tasks, captions, prompt or filters have changed")
        if old and new and old["weight"] != new["weight"]:
            lines.append(f"source {name}: {new['weight']:.4g} of the samples, before {old['weight']:.4g}")
    return lines


def name_latents(autoencoder: Mapping[str, Any]) -> dict[str, str]:
    """The name, and a hash of all that decides what the latents of an autoencoder mean.

    Args:
        autoencoder: as in the header of a shard: hashes of config and weights, scaling and shift.
    """
    keys = ("config_sha256", "weights_sha256", "scaling_factor", "shift_factor")
    name = str(autoencoder.get("name", "an unnamed autoencoder"))
    what = PIXELS if name == PIXELS else json.dumps([autoencoder.get(key) for key in keys])
    return {"name": name, "sha256": hashlib.sha256(what.encode()).hexdigest()}


def check_decoder(data: Mapping[str, Any], kind: str, codec: str, autoencoder: Mapping[str, Any]) -> None:
    """Compare the autoencoder that turns latents into pictures with that of the data.

    Args:
        data: as `describe_data` gives it.
        kind: the modality that has the codec.

    Raises:
        ValueError: they differ.
    """
    theirs, ours = data.get("latents"), name_latents(autoencoder)
    if theirs and theirs["sha256"] != ours["sha256"]:
        raise ValueError(
            f"modality.{kind}.codec: {codec} ({ours['sha256'][:12]}) is not what made the images of the data, "
            f"{_name(theirs)}; name the folder of that one"
        )


def _find_latents(shards: Sequence[ShardSet], kinds: Iterable[str]) -> dict[str, str]:
    """Which autoencoder's latents the pictures of all sources are; empty without pictures."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    for of_source in shards:
        for path, index in zip(of_source.paths, of_source.indexes, strict=True):
            if any(_is_picture(extension, kinds) for extension in index.extensions):
                made_by = index.header.get("autoencoder", {"name": PIXELS})
                latents = name_latents(made_by if isinstance(made_by, Mapping) else {})
                found.setdefault(latents["sha256"], (latents, f"source {of_source.source}, {path}"))
    if len(found) > 1:
        (one, here), (other, there), *_ = found.values()
        raise ValueError(
            f"{here}: images as latents of {_name(one)}, but in {there} of {_name(other)}; a run has one autoencoder: "
            "encode all of them by one"
        )
    return next((latents for latents, _ in found.values()), {})


def _is_picture(extension: str, kinds: Iterable[str]) -> bool:
    """Whether a member is a picture or its latent; arrays named after a modality are values as they are."""
    stem, _, kind = extension.rpartition(".")
    return DIMENSIONS.get(kind) == 2 or (kind == "npy" and stem.rpartition(".")[2] not in (*BESIDE, *kinds))


def _hash_shards(shards: ShardSet) -> str:
    digest = hashlib.sha256()
    for prefix, index in zip(shards.prefixes, shards.indexes, strict=True):
        digest.update(f"{prefix} {index.tar_sha256}\n".encode())
    return digest.hexdigest()


def _without(source: Source, *names: str) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.name not in names}


def _name(latents: Mapping[str, str]) -> str:
    return PIXELS if latents["name"] == PIXELS else f"{latents['name']} ({latents['sha256'][:12]})"

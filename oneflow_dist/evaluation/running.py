"""A suite on a checkpoint: its answers by as many processes as there are, then its report by the first of them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from oneflow_dist.config import write_config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.evaluation.generation import Respondent, list_groups, write_answers
from oneflow_dist.evaluation.report import ANSWERS, RUN, Protocol, load_items
from oneflow_dist.evaluation.suite import Suite, write_suite
from oneflow_dist.files import write_whole
from oneflow_dist.model.flops import num_parameters
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.pictures import check_decoders
from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights, progress_of

SUITE = "suite.toml"


def answer_suite(run: Path, suite: Suite, folder: Path, rank: int, num_ranks: int) -> None:
    """Write all answers of a suite, together with whoever else writes them; returns when all are there.

    Each rank of torchrun has a GPU of its own. On the CPU every process computes on one thread: with another number
    last bits differ, and so would answers.

    Raises:
        ValueError: no checkpoint, the folder has answers of another one, or an item cannot be asked.
    """
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    checkpoint = find_checkpoint(run)
    config = config_at_home(checkpoint)
    check_decoders(config, progress_of(checkpoint).data)
    model = load_weights(checkpoint, config)
    protocol = Protocol(
        checkpoint=hash_weights(model),
        step=progress_of(checkpoint).step,
        parameters=num_parameters(model),
        config=hashlib.sha256(write_config(config).encode()).hexdigest(),
    )
    claim_folder(folder, suite, asdict(protocol))
    respondent = Respondent(model, config, load_tokenizer(config.data.tokenizer, config.modality))
    groups = [
        group for name, items in load_items(suite).items() for group in list_groups(name, suite.task[name], items)
    ]
    write_answers(respondent, groups, folder / ANSWERS, rank, num_ranks)


def claim_folder(folder: Path, suite: Suite, protocol: dict[str, Any]) -> None:
    """Say whose answers a folder holds.

    Raises:
        ValueError: it has those of another checkpoint or suite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {RUN: json.dumps(protocol, indent=2) + "\n", SUITE: write_suite(suite)}
    for name, text in own.items():
        path = folder / name
        if path.exists() and path.read_text() != text:
            raise ValueError(f"{path}: is of another checkpoint or suite; name another folder, or remove {folder}")
        if not path.exists():
            write_whole(path, text.encode())


def hash_weights(model: OneFlow) -> str:
    """sha256 of all weights by name: the same for a checkpoint in whatever layout it was written."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

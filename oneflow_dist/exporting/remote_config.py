"""The config.json of a folder that brings its own code: all that the network and its writing need to know."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.llama import to_llama_config
from oneflow_dist.sampling import SamplingConfig

USED = ("steps", "time_power", "firing", "guidance", "piece_steps", "temperature", "top_k", "top_p", "max_rows")
OF_NO_DOCUMENT = ("every_steps", "prompts", "given", "canvas_tokens", "remasking", "weak_temperature")


def to_remote_config(
    config: Config, dtype: torch.dtype, tokenizer: Tokenizer, autoencoders: dict[str, str]
) -> dict[str, Any]:
    """A config.json as transformers reads it with `trust_remote_code`.

    Args:
        autoencoders: by modality, the folder within the exported one; none for pixels.

    Raises:
        ValueError: the code that comes along cannot do what this config says; names the key.
    """
    _check(config)
    trunk = to_llama_config(config, dtype)
    trunk["model_type"] = "oneflow"
    trunk["architectures"] = ["OneFlowModel"]
    rope = trunk.pop("rope_scaling") or {"rope_type": "default"}
    trunk["rope_parameters"] = {"rope_theta": trunk.pop("rope_theta"), **rope}
    return {
        "auto_map": {"AutoConfig": "modeling_oneflow.OneFlowConfig", "AutoModel": "modeling_oneflow.OneFlowModel"},
        **trunk,
        "theta": config.model.rope_theta,
        "rope_factor": config.model.rope_scaling,
        "qk_norm": config.model.qk_norm,
        "prompt_sees": config.model.prompt_sees,
        "time_conditioning": config.heads.time_conditioning,
        "keep_schedule": config.flow.keep_schedule,
        "keep_exponent": config.flow.keep_exponent,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "num_tokens": tokenizer.vocab_size,
        "modalities": {
            name: {
                "token": modality.token,
                "token_id": tokenizer.piece_of[name],
                "channels": modality.channels,
                "shape": list(modality.shape),
                "patch": list(modality.patch),
                "num_rows": modality.num_rows,
                "adapter_width": modality.adapter_width,
                "time_conditioning": modality.time_conditioning,
                "squeezed_to": modality.squeezed_to,
                "autoencoder": autoencoders.get(name, ""),
            }
            for name, modality in config.modality.items()
        },
        "sampling": {name: getattr(config.sampling, name) for name in USED},
    }


def _check(config: Config) -> None:
    """What the small loop of the folder has not: everything at its default but what is in USED."""
    if not config.objective.inserts:
        raise ValueError(
            f'objective.kind: is "{config.objective.kind}", but --format transformers writes by insertion alone; '
            "--format oneflow exports any"
        )
    for name, modality in config.modality.items():
        if modality.adapter == "unet" or modality.understanding != "none" or modality.shift_rows:
            raise ValueError(
                f"modality.{name}: has a U-Net, `understanding` or `shift_rows`, which the code of --format "
                "transformers has not; --format oneflow exports any"
            )
    for own in dataclasses.fields(SamplingConfig):
        value = getattr(config.sampling, own.name)
        if own.name not in (*USED, *OF_NO_DOCUMENT) and value != own.default:
            raise ValueError(
                f"sampling.{own.name}: is {value}, but --format transformers writes with {own.default} alone; "
                "--format oneflow exports any"
            )

"""In which interval every number of a config lies."""

from __future__ import annotations

LEAST_TEMPERATURE = 1e-30  # as in oneflow_kernels.sample_bag: below it logits overflow

# "[" and "]" belong to their interval, "(" and ")" do not.
RANGES = {
    "run": {"seed": "[0, 2^63)"},  # numpy takes larger ones through a float
    "model": {
        "width": "[1, inf)",
        "num_layers": "[1, inf)",
        "num_attention_heads": "[1, inf)",
        "num_kv_heads": "[1, inf)",
        "mlp_width": "[1, inf)",
        "vocab_size": "[1, inf)",
        "rope_theta": "(0, inf)",
        "norm_eps": "[0, inf)",
        "rope_scaling": "(0, inf)",
    },
    "image": {
        "channels": "[1, inf)",
        "height": "[1, inf)",
        "width": "[1, inf)",
        "patch_size": "[1, inf)",
    },
    "flow": {
        "keep_exponent": "(0, inf)",
        "image_weight": "[0, inf)",
        "condition_dropout_prob": "[0, 1]",
    },
    "data": {
        "packs_per_step": "[1, inf)",
        "rows_per_pack": "[1, inf)",
        "tokens_per_pack": "[1, inf)",
        "bag_tokens_per_pack": "[1, inf)",
        "images_per_pack": "[1, inf)",
        "sequences_per_pack": "[2, inf)",  # one is for padding
        "max_sample_rows": "[1, inf)",
        "window_samples": "[1, inf)",
        "workers": "[0, inf)",
        "cached_samples": "[0, inf)",
    },
    "optim": {
        "lr": "(0, inf)",
        "warmup_steps": "[0, inf)",
        "final_lr_fraction": "[0, 1]",
        "beta1": "[0, 1)",
        "beta2": "[0, 1)",
        "eps": "(0, inf)",
        "weight_decay": "[0, inf)",
        "max_grad_norm": "(0, inf]",  # inf: nothing is clipped
        "ema_decay": "[0, 1)",
    },
    "train": {"steps": "[1, inf)", "gc_every_steps": "[0, inf)"},
    "parallel": {
        "replicate": "[1, inf)",
        "shard": "[-1, -1] or [1, inf)",
        "tensor": "[1, inf)",
    },
    "checkpoint": {"every_steps": "[1, inf)", "keep": "[1, inf)", "keep_every_steps": "[0, inf)"},
    "guard": {
        "spike_factor": "[0, inf)",
        "max_skipped_steps": "[0, inf)",
        "hang_seconds": "[0, inf)",
        "slow_ranks_every_steps": "[0, inf)",
    },
    "metrics": {"profile_step": "[0, inf)"},
    "sampling": {
        "every_steps": "[0, inf)",
        "steps": "[1, inf)",
        "time_power": "[1, inf)",
        "guidance": "(-inf, inf)",
        "temperature": f"[{LEAST_TEMPERATURE:g}, inf)",
        "top_k": "[0, inf)",
        "top_p": "(0, 1]",
        "max_rows": "[1, inf)",
    },
}


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside of an interval, or of several joined by " or ".

    Raises:
        ValueError: says the name, the value and the interval.
    """
    if not any(_contains(part, value) for part in interval.split(" or ")):
        raise ValueError(f"{name}: {value} must lie in {interval}")


def _contains(interval: str, value: float) -> bool:
    """Whether it does; NaN lies in none."""
    low, high = (_bound(text) for text in interval[1:-1].split(", "))
    is_above = value >= low if interval[0] == "[" else value > low
    return is_above and (value <= high if interval[-1] == "]" else value < high)


def _bound(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** int(exponent or 1)

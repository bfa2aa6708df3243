"""The command that trains: `python -m oneflow_dist.train configs/x.toml [section.key=value ...]`.

It loads torch, which takes seconds, only when the command line is understood and signals are heard.
"""

from __future__ import annotations

import argparse

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.extras import require
from oneflow_dist.runtime import end_process, log, run_program, start_process
from oneflow_dist.signals import StopSignals


def main() -> None:
    """Entry point."""
    signals = StopSignals()
    signals.listen()
    parser = argparse.ArgumentParser(description="Train a OneFlow model; run the same command again to resume.")
    parser.add_argument("config", help="TOML file, as configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    parser.add_argument("--dry-run", action="store_true", help="print the config and the sizes, train nothing")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        dry_run(config)
        return
    check_sinks(config)
    log(f"{config.run.folder}: {config.train.steps} steps of {args.config}; loading torch")
    from oneflow_dist.training import train

    device = start_process(config.data.workers, config.train.deterministic)
    train(config, device, signals)
    end_process()


def check_sinks(config: Config) -> None:
    """Raise ValueError, before anything is loaded, where a package is missing that a run is to report with."""
    if config.metrics.tensorboard:
        require("metrics.tensorboard", "track", "tensorboard")
    if config.metrics.wandb != "off":
        require("metrics.wandb", "track", "wandb")


def dry_run(config: Config) -> None:
    """Print the config, the parameters and the capacities, without data or devices."""
    import torch

    from oneflow_dist.model.flops import describe
    from oneflow_dist.model.oneflow import OneFlow
    from oneflow_dist.parallel.sharding import freeze

    with torch.device("meta"):
        model = OneFlow(config)
    freeze(model, config)
    print(write_config(config))
    print(describe(model, config))


if __name__ == "__main__":
    run_program(main)

"""The paper: keep schedules, noising and losses. No network, no torch.distributed."""

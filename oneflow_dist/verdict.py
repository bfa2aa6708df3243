"""How a run has ended, told to what launched it: exit codes do not come through torchrun and srun as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from oneflow_dist.files import write_whole

State = Literal["finished", "stopped", "hung", "unfit", "failed"]


def tell(state: State, message: str = "") -> None:
    """Leave this rank's verdict in the folder that the launch has named in ONEFLOW_ATTEMPT; without one, do nothing.

    Args:
        state: stopped: by a signal; hung: by the watchdog; unfit: a node, by the health check; failed: it would fail
            again, so somebody has to mend something. A rank that dies tells nothing.
    """
    if folder := os.environ.get("ONEFLOW_ATTEMPT"):
        content = json.dumps({"state": state, "message": message})
        write_whole(Path(folder) / f"verdict-{os.environ.get('RANK', '0')}.json", content.encode())

"""Train in float64, to be started by torchrun: tests/test_distributed.py says what.

RUNS in the environment is a JSON list of runs, each a list of flags and the step after which the
run is interrupted, -1 for none. They run one after another in this process.
"""

import json
import os
import signal
import sys
from typing import Any

import torch
from torch import Tensor

import eval
import train


def main() -> int:
    torch.set_default_dtype(torch.float64)
    read, log_step = eval.model_input, train.log_step

    def read_double(*args: Any) -> Tensor:
        return read(*args).double()

    def stop(run: train.Run, *values: Any) -> None:
        log_step(run, *values)
        if run.world.rank == 0 and run.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    eval.model_input = read_double
    train.log_step = stop
    for flags, stop_at in json.loads(os.environ["RUNS"]):
        status = train.main(flags)
        if status != (130 if stop_at >= 0 else 0):
            return status or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

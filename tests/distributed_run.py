"""Train in float64, to be started by torchrun: tests/test_distributed.py says with which flags.

With STOP_AT set every process is interrupted after that step.
"""

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
        if run.world.rank == 0 and run.step == int(os.environ.get("STOP_AT", "-1")):
            signal.raise_signal(signal.SIGTERM)

    eval.model_input = read_double
    train.log_step = stop
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

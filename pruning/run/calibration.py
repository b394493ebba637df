"""What the layers of a run's model see, which the last prune may be fitted to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.projection import input_second_moments
from pruning.run.state import Run

CALIBRATION_BATCHES = 16


@torch.no_grad()
def collect_inputs(run: Run) -> dict[str, Tensor]:
    """Return the second moments of what the layers in scope see of a few training batches.

    The model is as in evaluation, so nothing is drawn and the run's random state stays.
    """
    model = run.checkpoint.model
    was_training = model.training

    def run_batches() -> None:
        for batch in run.sampler.epoch_batches(0)[:CALIBRATION_BATCHES]:
            if mine := run.world.share(batch):
                run.task.loss([run.inputs[i] for i in mine], [run.targets[i] for i in mine])

    def add_up(tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            run.world.sum(tensor)

    model.eval()
    moments = input_second_moments(model, run.params, run_batches, add_up)
    model.train(was_training)
    return moments

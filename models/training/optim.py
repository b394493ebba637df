"""The optimizer of a run: AdamW, learning rate, loss scaling, clipping and non-finite steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.family import Recipe
from models.training.recipes import FitOptions


class FlatGradients:
    """Gradients of some parameters as views of one vector, where they stay for good.

    So zeroing them, clipping them and summing them over processes are single calls, and a captured
    step finds them where they were. One of a parameter that took no part is 0.

    Args:
        params: Of one type, on one device; each is given its gradient, which is 0.

    Attributes:
        vector: All of them.
        views: That of each parameter.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._params = list(params)
        sizes = [parameter.numel() for parameter in self._params]
        self.vector = self._params[0].new_zeros(sum(sizes))
        parts = zip(self.vector.split(sizes), self._params, strict=True)
        self.views = [part.view_as(parameter) for part, parameter in parts]
        for parameter, view in zip(self._params, self.views, strict=True):
            parameter.grad = view

    def check(self) -> None:
        """Check that every gradient is where it was.

        Raises:
            RuntimeError: If one was replaced, so that what was added to it since is not in here.
        """
        pairs = zip(self._params, self.views, strict=True)
        if any(parameter.grad is not view for parameter, view in pairs):
            raise RuntimeError("a gradient was replaced: zero gradients in place")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters with ``requires_grad`` by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Optimizer:
    """Fused AdamW over the parameters that train, a new head's in a group of their own.

    A step whose loss or gradient is not finite changes no weight and is counted. Nothing here waits
    for the device until :meth:`check`.

    Args:
        model: Parameters with ``requires_grad`` are trained; they stay in float32.
        lr: Peak learning rate.
        head_lr: Peak learning rate of the parameters named in ``head``.
        head: Native names of a new head's parameters.
        steps: Optimizer steps of the run.
        warmup: Share of the steps in which the rate rises.
        hold: Share of the steps at the peak.
        clip: Largest gradient norm.
        weight_decay: Decoupled weight decay.
        scale_loss: Scale the loss as fp16 needs (``torch.amp.GradScaler``).
        patience: Non-finite steps in a row before ``check`` raises.
        restarts: Steps (from 0) at which the rate starts again, see :func:`restarted_factor`.
        phases: Steps (from 0) at which the rate begins anew with all its stages, its warm-up too.
        gradients: Those of the parameters that train; made here where they are not given.

    Attributes:
        gradients: As given or made; what is added up since the last step.
        lr: Rate of the latest step, of the parameters outside the head.

    Source:
        Betas (0.9, 0.98) of the wav2vec 2.0 and PARP recipes.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        head_lr: float,
        head: Sequence[str],
        steps: int,
        warmup: float = 0.1,
        hold: float = 0.4,
        clip: float = 1.0,
        weight_decay: float = 0.0,
        scale_loss: bool = False,
        patience: int = 10,
        restarts: Sequence[int] = (),
        phases: Sequence[int] = (),
        gradients: FlatGradients | None = None,
    ) -> None:
        trained = trained_parameters(model)
        groups = [
            {"params": [p for name, p in trained.items() if name not in head], "peak_lr": lr},
            {"params": [p for name, p in trained.items() if name in head], "peak_lr": head_lr},
        ]
        self.gradients = gradients or FlatGradients(list(trained.values()))
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
        )
        device = self.gradients.vector.device
        self._scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self._steps, self._warmup, self._hold = steps, warmup, hold
        self._restarts, self._phases = restarts, phases
        self._clip = clip
        self._patience = patience
        # skipped so far, skipped in a row, the longest row since the last check
        self._skipped = torch.zeros(3, dtype=torch.int64, device=device)
        self.lr = 0.0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled where fp16 needs it."""
        self._scaler.scale(loss).backward()

    def step(self, number: int, loss: Tensor) -> Tensor:
        """Take step ``number`` (from 0) with the gradients added since the last.

        Returns:
            The gradient norm before clipping, a scalar on the device.
        """
        factor = self._rate_factor(number)
        for group in self._adam.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.lr = self._adam.param_groups[0]["lr"]
        self.gradients.check()
        self._scaler.unscale_(self._adam)
        grad_norm = nn.utils.get_total_norm(self.gradients.views)
        self.gradients.vector.mul_((self._clip / (grad_norm + 1e-6)).clamp(max=1.0))
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))

        if self._scaler.is_enabled():
            self._scaler.step(self._adam)
            self._scaler.update()
        else:  # as the scaler does: the fused step looks at this and leaves the weights alone
            self._adam.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self._adam.step()

        self.gradients.vector.zero_()
        self._count(is_bad)
        return grad_norm

    def _count(self, is_bad: Tensor) -> None:
        skipped, row, longest = self._skipped
        row = (row + 1) * is_bad
        self._skipped = torch.stack([skipped + is_bad, row, torch.maximum(longest, row)])

    def check(self) -> int:
        """Return the steps skipped so far.

        Raises:
            ValueError: If too many steps in a row were not finite.
        """
        skipped, row, longest = self._skipped.tolist()
        self._skipped[2] = row
        if longest >= self._patience:
            raise ValueError(
                f"{longest} steps in a row had a non-finite loss or gradient: lower --lr, or use "
                "--precision fp32"
            )
        return int(skipped)

    def second_moments(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Adam's running means of squared gradients by name of ``params``.

        They are the optimizer's own tensors, without the correction of their bias.

        Raises:
            ValueError: If no step has been taken yet.
        """
        moments = {}
        for name, parameter in params.items():
            state = self._adam.state.get(parameter, {})
            if "exp_avg_sq" not in state:
                raise ValueError(f"{name} has no second moment yet: take a training step first")
            moments[name] = state["exp_avg_sq"]
        return moments

    @torch.no_grad()
    def zero_moments(self, params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Forget Adam's moments of the weights that ``masks`` drop, by name of ``params``."""
        for name, mask in masks.items():
            state = self._adam.state.get(params[name], {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment].mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {
            "adam": self._adam.state_dict(),
            "scaler": self._scaler.state_dict(),
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state that ``state_dict`` returned, out of a file that may be damaged.

        Raises:
            ValueError: If it does not fit the parameters that are trained.
        """
        own = self.state_dict()
        moments, scaler, skipped = state["adam"].get("state"), state["scaler"], state["skipped"]
        parameters = [each for group in self._adam.param_groups for each in group["params"]]
        if not isinstance(moments, dict) or not all(
            number in range(len(parameters)) and _are_moments(moments[number], parameters[number])
            for number in moments
        ):
            raise ValueError("the optimizer's moments do not fit the parameters")
        if {name: type(value) for name, value in scaler.items()} != {
            name: type(value) for name, value in own["scaler"].items()
        }:
            raise ValueError("the loss scaling is that of another precision")
        if not isinstance(skipped, Tensor) or (skipped.dtype, skipped.shape) != (torch.int64, (3,)):
            raise ValueError("the optimizer's counts of skipped steps are none")

        # Rates and the like follow from the options, which are those that the run began with.
        groups = own["adam"]["param_groups"]
        self._adam.load_state_dict({"state": moments, "param_groups": groups})
        self._scaler.load_state_dict(scaler)
        self._skipped = skipped.to(self._skipped.device)

    def _rate_factor(self, number: int) -> float:
        if self._restarts:
            return restarted_factor(number, self._steps, self._warmup, self._restarts)
        begin, end = _part_of(number, 0, self._steps, self._phases)
        return learning_rate_factor(number - begin, end - begin, self._warmup, self._hold)


def _are_moments(state: Any, parameter: Tensor) -> bool:
    """Return whether ``state`` is what Adam keeps of a parameter."""
    sizes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    return (
        isinstance(state, dict)
        and {
            name: tensor.shape
            for name, tensor in state.items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point()
        }
        == sizes
    )


def learning_rate_factor(step: float, steps: float, warmup: float, hold: float) -> float:
    """Return the factor of the peak rate at ``step`` (from 0) of ``steps``.

    Three stages: linear from 0.01 to 1 over the share ``warmup`` of the run, constant over the
    share ``hold``, then exponential down to 0.05.

    Source:
        fairseq's tri_stage schedule with the phases of the wav2vec 2.0 recipes. There phases may
        be steps; here they are always shares, so that no warm-up outlasts its run.
    """
    progress = step / max(1, steps)
    if progress < warmup:
        return 0.01 + 0.99 * progress / warmup
    if progress < warmup + hold:
        return 1.0
    return float(0.05 ** ((progress - warmup - hold) / (1.0 - warmup - hold)))


def restarted_factor(step: int, steps: int, warmup: float, restarts: Sequence[int]) -> float:
    """Return the factor of the peak rate at ``step`` (from 0) where it starts again at prunes.

    After the warm-up, which is that of :func:`learning_rate_factor`, the rate falls linearly from
    the peak to a tenth of it by the next restart, or by the end of the run.

    Source:
        The learning rate rewinds of the gradual recipes of oBERT (Kurtic et al. 2022,
        arXiv:2203.07259), SparseML's ``cyclic_linear``. There the interval is in epochs and the
        end a tenth to a half of the peak, by recipe.
    """
    if step < warmup * steps:
        return learning_rate_factor(step, steps, warmup, hold=0.0)
    begin, end = _part_of(step, warmup * steps, steps, restarts)
    return 1.0 - 0.9 * (step - begin) / (end - begin)


def _part_of(step: int, first: float, last: int, starts: Sequence[int]) -> tuple[float, int]:
    """Return begin and end of the part around ``step``, where ``starts`` cut the whole."""
    begin = max([first, *(start for start in starts if start <= step)])
    return begin, min([last, *(start for start in starts if start > step)])


def build_optimizer(
    model: nn.Module,
    options: FitOptions,
    recipe: Recipe,
    new_head: Sequence[str],
    steps: int,
    restarts: Sequence[int] = (),
    phases: Sequence[int] = (),
    gradients: FlatGradients | None = None,
) -> Optimizer:
    """Return a fresh optimizer for so many steps.

    Args:
        model: As for :class:`Optimizer`.
        options: What is not in the recipe.
        recipe: Learning rates and their phases.
        new_head: Names of the parameters of a new head.
        steps: Optimizer steps.
        restarts: As for :class:`Optimizer`.
        phases: As for :class:`Optimizer`.
        gradients: As for :class:`Optimizer`.
    """
    return Optimizer(
        model,
        recipe.lr,
        recipe.head_lr,
        new_head,
        steps=steps,
        warmup=options.warmup,
        hold=recipe.hold,
        clip=options.clip,
        weight_decay=options.weight_decay,
        scale_loss=options.precision == "fp16",
        patience=options.patience,
        restarts=restarts,
        phases=phases,
        gradients=gradients,
    )

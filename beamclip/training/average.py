"""A moving average of a method's weights."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WeightAverage:
    """Exponential moving average of a module's parameters and batch norm statistics.

    An averaged network needs statistics of its own, so those are averaged with the weights. Every other
    buffer is copied: a causal mask holds -inf and a counter whole numbers, which have no average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start the average at the module's current state.

        Args:
            decay: share of the average that each update keeps, 0..1.
        """
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self._averaged = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self._averaged |= set(_statistics(module))
        self._begun = False

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's current weights; a new average begins with them."""
        latest = module.state_dict()
        for name in latest.keys() - self._averaged:
            self.tensors[name].copy_(latest[name])
        names = sorted(self._averaged)
        share = 1.0 - self.decay if self._begun else 1.0
        self._begun = True
        torch._foreach_lerp_([self.tensors[n] for n in names], [latest[n] for n in names], share)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Set the average to `tensors`: an earlier average, or a module's state dict."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self._begun = True


@contextlib.contextmanager
def evaluated(module: nn.Module, average: WeightAverage | None) -> Iterator[None]:
    """Inside, a module is in eval mode on all ranks alike, with averaged weights if there is an average.

    A rank's batch norms hold the statistics of its own samples. Those of rank 0 are what checkpoints hold, so
    all ranks take them over: a collective. Afterwards, the weights and the mode of each part are as before.
    """
    modes = [(part, part.training) for part in module.modules()]
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()} if average else {}
    try:
        module.eval()
        if average is not None:
            module.load_state_dict(average.tensors)
        if dist.is_initialized():
            tensors = module.state_dict()
            for name in _statistics(module):
                dist.broadcast(tensors[name], 0)
        yield
    finally:
        if own:
            module.load_state_dict(own)
        for part, mode in modes:
            part.training = mode


def _statistics(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            yield from (f"{name}.{kind}".lstrip(".") for kind in ("running_mean", "running_var"))

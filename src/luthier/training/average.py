"""EMA: a running mean of what is trained, which is evaluated and saved in its place. Polyak and Juditsky 1992."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Running means in float32 (or wider) of the parameters, by name. With decay 0 there are none and nothing happens."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.means = {name: value.detach().clone() for name, value in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the optimizer's step number `step`, counted from 1. The decay grows, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, mean in self.means.items():
            mean.lerp_(self.parameters[name], 1 - decay)

    @torch.no_grad()
    def load(self, means: Mapping[str, Tensor]) -> None:
        self.means = {name: means[name].to(mean, copy=True) for name, mean in self.means.items()}

    @torch.no_grad()
    def adopt(self) -> None:
        """The parameters become their means, for good."""
        for name, mean in self.means.items():
            self.parameters[name].copy_(mean)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the parameters are their means."""
        kept = {name: self.parameters[name].detach().clone() for name in self.means}
        self.adopt()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)

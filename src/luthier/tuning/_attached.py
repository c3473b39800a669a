"""What a tuning method has attached to a model: its trainable parameters by name, and what the training loop asks of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.core.transformer import Net
from luthier.lookup import suggest

Cut = tuple[int, Tensor]  # a dimension of a parameter, and (entries before,) bool: which of its entries are left


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike; rate None is the run's learning rate."""

    name: str
    parameters: dict[str, nn.Parameter]
    rate: float | None = None
    factor: float = 1.0  # on that rate


@dataclass
class Attached:
    """One method on one model.

    name: of its adapter in the anatomy. parameters: names say stack, layer and role where there is a role, so they are the same for our
    models and others. whole: the model itself is trained; save it instead of an adapter. A method with more to say (AdaLoRA: an
    orthogonality penalty, a shrinking rank) gives penalty_of, begin_of and step_of, and fits_of where a saved value may have another shape.
    """

    anatomy: Anatomy
    name: str
    method: Any
    parameters: dict[str, nn.Parameter]
    whole: bool = False
    rates: dict[str, float] = field(default_factory=dict)  # parameter name -> its own learning rate
    factors: dict[str, float] = field(default_factory=dict)  # parameter name -> a factor on its rate
    source: str = ""  # where the base's weights came from
    tokenizer: Any = None  # saved with the adapter where the vocabulary has grown
    net: Net | None = None  # takes the place of the model's net
    save_of: Callable[[Path], None] | None = None  # for methods with a format of their own
    load_of: Callable[[Path], None] | None = None
    penalty_of: Callable[[], Tensor] | None = None
    begin_of: Callable[[int], None] | None = None
    step_of: Callable[[int], Mapping[str, Cut] | None] | None = None
    fits_of: Callable[[str, Sequence[int]], bool] | None = None
    passes: tuple[str, ...] = ()  # of a parallel composition: adapters that each read every text for themselves
    members: dict[str, "Attached"] = field(default_factory=dict)  # of a composition, by label
    memory: dict[str, Tensor] = field(default_factory=dict)  # what the method remembers from step to step; goes with every checkpoint

    def groups(self) -> list[Group]:
        """The trainable parameters by learning rate."""
        members: dict[tuple[float | None, float], dict[str, nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            members.setdefault((self.rates.get(name), self.factors.get(name, 1.0)), {})[name] = parameter
        return [Group(self._told(*key), parameters, *key) for key, parameters in members.items()]

    def _told(self, rate: float | None, factor: float) -> str:
        return self.name + ("" if rate is None else f" at {rate:g}") + ("" if factor == 1 else f" times {factor:g}")

    def penalty(self) -> Tensor | None:
        """A term of the method's own for the loss."""
        return None if self.penalty_of is None else self.penalty_of()

    def begin(self, steps: int) -> None:
        """Called before the first step of a run of so many."""
        if self.begin_of is not None:
            self.begin_of(steps)

    def after_step(self, step: int) -> Mapping[str, Cut]:
        """Called after the optimizer's step number `step`, from 1; by name the parameters that it has made smaller."""
        return (self.step_of(step) if self.step_of is not None else None) or {}

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether what is held under this name may take a value of this shape."""
        return tuple(shape) == tuple(self._held()[name].shape) or (self.fits_of is not None and self.fits_of(name, shape))

    def running(self, name: str = "") -> list[AbstractContextManager[None]]:
        """What a text runs under, once in each: as the model stands, or of a parallel composition one member after the other.

        name: of the one adapter that the text's row asks for. ValueError where there is none of that name.
        """
        if name:
            return [self.anatomy.switch.using((self._called(name),))]
        chosen = self.passes if self.anatomy.active == (self.name,) else ()
        return [self.anatomy.switch.using((each,)) for each in chosen] or [nullcontext()]

    def _called(self, name: str) -> str:
        """The adapter that rows call so: by its own name, or by that of a composition's member."""
        named, own = self.anatomy.switch.named, f"{self.name}_"
        here = named[self.name].all if self.name in named else ()
        if own + name in here:
            return own + name
        known = [*(each.removeprefix(own) for each in here), *self.anatomy.adapters]
        if name not in known:
            raise ValueError(f"no adapter is called {name!r}{suggest(name, known)}; there are {', '.join(dict.fromkeys(known)) or 'none'}")
        if name in named and named[name].passes:
            raise ValueError(f"{name!r} is several adapters in parallel; name one of them: {', '.join(named[name].passes)}")
        return name

    def state(self) -> dict[str, Tensor]:
        """Everything that trains, by name: what a checkpoint needs for going on to the bit."""
        return {name: value.detach() for name, value in self._held().items()}

    def _held(self) -> dict[str, Tensor]:
        return self.parameters | self.memory

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of `state()` back. Refuses when a name or a shape does not fit, and changes nothing then."""
        held = self._held()
        missing, unexpected = sorted(held.keys() - tensors.keys()), sorted(tensors.keys() - held.keys())
        shapes = [name for name, value in tensors.items() if name in held and not self.fits(name, value.shape)]
        if missing or unexpected or shapes:
            told = [f"{what}: {', '.join(names)}" for what, names in _problems(missing, unexpected, shapes) if names]
            raise ValueError(f"the saved state of {self.name!r} is of another model or method; {'; '.join(told)}")
        with torch.no_grad():
            for name, value in tensors.items():
                if held[name].shape != value.shape:
                    held[name].data = held[name].new_empty(value.shape)
                held[name].copy_(value)

    def save(self, directory: str | Path) -> None:
        """Write the adapter as a peft folder, with luthier_state.safetensors beside it."""
        from luthier.tuning._write import write  # the writer knows Attached

        write(self, Path(directory)) if self.save_of is None else self.save_of(Path(directory))

    def load(self, directory: str | Path) -> None:
        """Put the adapter saved in a folder in the place of this one. Its parameters are new: build the optimizer afterwards."""
        from luthier.tuning._read import read

        if self.load_of is not None:
            return self.load_of(Path(directory))
        self.anatomy.remove(self.name)
        again = read(self.anatomy, Path(directory), self.name, trainable=True)
        for part in (
            "method",
            "parameters",
            "rates",
            "factors",
            "penalty_of",
            "begin_of",
            "step_of",
            "fits_of",
            "memory",
            "save_of",
            "members",
        ):
            setattr(self, part, getattr(again, part))


def _problems(missing: list[str], unexpected: list[str], shapes: list[str]) -> list[tuple[str, list[str]]]:
    return [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]

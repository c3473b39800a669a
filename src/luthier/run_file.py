"""A run file: model x tuning x objective, over data, and how plug-ins' sections become plug-ins and plain values again.

Importing this imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from luthier import config as yaml
from luthier import lookup
from luthier.data.settings import Data
from luthier.lookup import Shelf
from luthier.training.settings import Training
from luthier.tuning import _composition as composition


@dataclass(frozen=True)
class Run:
    """A run file. Sections of plug-ins are a name, {kind: name, ...}, or from Python the plug-in itself."""

    model: Annotated[
        Any, Shelf("models", key="arch", bare=False, extra=("preset", "tokenizer", "start", "eyes", "voice"))
    ]  # a source, or {arch: llama, ...}
    data: Data
    objective: Annotated[Any, Shelf("objectives")]
    training: Training
    output: str  # the folder for everything the run writes
    tuning: Annotated[Any, Shelf("tuning", many=True, nest="tuning/_composition.py")] = "full"  # a list stacks methods
    evaluation: Annotated[tuple[Any, ...], Shelf("evaluation", many=True)] = ()  # measures, beside the held-out loss
    samples: int = 0  # held-out questions that are answered before and after
    seed: int = 0
    device: str = "auto"  # cpu, cuda, cuda:1; auto: cuda where there is one
    plugins: tuple[str, ...] = ()  # folders of your own plug-ins

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Run":
        """Reads a run file, with `a.b=c` set on top. ValueError holds every mistake of the file, each with its line."""
        document = yaml.read_yaml(path, overrides)
        for folder in document.values.get("plugins") or ():  # first: the sections name what lies there
            lookup.add_folder(str(folder))
        yaml.check(document, cls)
        return yaml.build(cls, document.values, document.where)

    def settings(self) -> dict[str, Any]:
        """Everything as plain values with every default filled in: config.yaml."""
        return {
            "model": self.model if isinstance(self.model, str | Mapping) else named(self.model),
            "data": asdict(self.data),
            "objective": section("objectives", self.objective),
            "training": asdict(self.training),
            "output": str(self.output),
            "tuning": section("tuning", self.tuning),
            "evaluation": [section("evaluation", measure) for measure in self.evaluation],
            "samples": self.samples,
            "seed": self.seed,
            "device": self.device,
            "plugins": list(self.plugins),
        }  # fmt: skip


def make(shelf: str, value: Any) -> Any:
    """The plug-in that a section names; one that is made already stays. Methods of tuning may be several."""
    if shelf == "tuning":
        return composition.tree(value)
    return yaml.build_plug_in(shelf, value) if isinstance(value, str | Mapping) else value


def section(shelf: str, value: Any) -> dict[str, Any]:
    made = make(shelf, value)
    if shelf == "tuning":
        return composition.plain(made)
    assert is_dataclass(made)
    assert not isinstance(made, type)
    return {"kind": type(made).__module__.rpartition(".")[2], **asdict(made)}


def named(model: Any) -> str:
    """A source that is a path, or an object from Python."""
    return str(model) if isinstance(model, Path) else type(model).__name__

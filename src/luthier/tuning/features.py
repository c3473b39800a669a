"""Feature-based transfer: heads on frozen states. Peters et al. 2018, arXiv:1802.05365, eq. 1; Devlin et al. 2018, section 5.3.

The net is only read, each text once, and its states are kept on disk, so an epoch costs what the head costs. Of a token's states h_k
(k = 0 the embedding, 1..L the layers) the head sees gamma * sum_k softmax(w)_k h_k, with gamma = 1 and w = 0 at the start (mix: scalar), or
all of them side by side (mix: concat; with last: 4 it is BERT's feature-based way). Vectors of the tokens themselves may be learnt beside
them, and a BiLSTM may stand between them and the head.

Legend: S states of a token, N tokens of all documents, D width
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from luthier.anatomy.anatomy import Anatomy
from luthier.config import build
from luthier.core.heads import KINDS, LabelHead
from luthier.core.transformer import Net
from luthier.sources.directory import read_json
from luthier.sources.model import Model
from luthier.sources.save import replace_folder, write_json
from luthier.sources.tensor_files import Safetensors, write_safetensors
from luthier.tuning._attached import Attached
from luthier.tuning._states import Documents, States
from luthier.tuning._tune import tune

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Features:
    mix: Literal["scalar", "concat"] = "scalar"  # a learnt mean of the states, or all of them side by side
    last: int = 0  # states of so many last layers; 0: of all layers and the embedding
    head: Literal["linear", "bilstm"] = "linear"
    width: int = 256  # of the BiLSTM, in each direction
    layers: int = 1  # of the BiLSTM
    vectors: int = 0  # width of vectors for the tokens that are learnt beside the states; 0: none
    dropout: float = 0.0  # before the head and between the layers of the BiLSTM
    cache: str = "~/.cache/luthier/features"  # folder for the states; it may grow large and may be deleted
    stored: Literal["fp32", "fp16", "bf16"] = "fp32"  # how states are kept

    def __post_init__(self) -> None:
        if self.last < 0 or self.width < 1 or self.layers < 1 or self.vectors < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"features needs last >= 0, width >= 1, layers >= 1, vectors >= 0 and 0 <= dropout < 1, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        """The heads on the net are made anew, as wide as what they now read."""
        if not isinstance(anatomy.net, Net) or anatomy.adapters:
            raise ValueError("features reads a net without adapters; load the base, or merge them first")
        heads = {kind: labels_of(head) for kind, head in anatomy.task_heads().items()}
        if not heads:
            raise ValueError(
                "features trains a head, and there is none: take an objective that has one (classify, tag, spans, choose, regress)"
            )
        net = FeatureNet(anatomy.net, self)
        for kind, labels in heads.items():
            net.add_head(kind, labels)
        attached = Attached(anatomy, name, self, dict(net.learnt()), net=net)
        attached.save_of = lambda directory: save(attached, directory)
        attached.load_of = lambda directory: attached.load_state(read_weights(directory))
        return attached


class Mix(nn.Module):
    """gamma * sum_k softmax(w)_k h_k"""

    def __init__(self, states: int):
        super().__init__()
        self.w_S, self.gamma = nn.Parameter(torch.zeros(states)), nn.Parameter(torch.ones(()))

    def forward(self, states_SND: Tensor) -> Tensor:
        return self.gamma * torch.einsum("s,snd->nd", self.w_S.softmax(0), states_SND)


class Beside(nn.Module):
    """All states of a token one after the other."""

    def forward(self, states_SND: Tensor) -> Tensor:
        return states_SND.movedim(0, 1).flatten(1)


class BiLSTM(nn.Module):
    """Over each document alone, in float32 at least."""

    def __init__(self, inputs: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, layers, dropout=dropout if layers > 1 else 0.0, bidirectional=True)

    def forward(self, x_ND: Tensor, lengths: tuple[int, ...]) -> Tensor:
        wide = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        packed, _ = self.lstm(pack_sequence(list(wide.split(list(lengths))), enforce_sorted=False))
        return torch.cat(unpack_sequence(packed)).to(x_ND.dtype)


class FeatureNet(Net):
    """A frozen net seen through its states; `hidden` is what the heads read. It has no language-model head."""

    def __init__(self, base: Net, method: Features):
        super().__init__()
        self.base, self.method = base.eval().requires_grad_(False), method
        self.states_of = States(base, method.cache, method.last, method.stored)
        self.vocab, self.causal, self.pool = base.vocab, base.causal, base.pool
        probe = torch.zeros(1, dtype=torch.long, device=next(base.parameters()).device)
        count, _, width = self.states_of.compute(Documents(probe, None, (1,))).shape
        if method.last > count:
            raise ValueError(f"features.last={method.last}, but a token has {count} states; lower it")
        self.mix = Mix(count) if method.mix == "scalar" else Beside()
        seen = (width if method.mix == "scalar" else count * width) + method.vectors
        self.words = nn.Embedding(base.vocab, method.vectors) if method.vectors else None
        self.lstm = BiLSTM(seen, method.width, method.layers, method.dropout) if method.head == "bilstm" else None
        self.width = 2 * method.width if self.lstm is not None else seen
        self.heads = nn.ModuleDict()
        self.to(probe.device, next(base.parameters()).dtype)

    def hidden(  # type: ignore[override]
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        types: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        if refused := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"features reads whole documents, so it takes no {' and no '.join(refused)}")
        real_BT = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        sizes = lengths or tuple(real_BT.sum(1).tolist())
        documents = Documents(ids[real_BT], None if types is None else types.expand_as(ids)[real_BT], sizes)
        x_ND = self.mix(self.states_of(documents))
        x_ND = x_ND if self.words is None else torch.cat([x_ND, self.words(documents.ids_N)], -1)
        x_ND = x_ND if self.lstm is None else self.lstm(x_ND, sizes)
        return x_ND.new_zeros(*ids.shape, self.width).masked_scatter(real_BT[..., None], x_ND)

    def add_head(self, kind: str, labels: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"no head called {kind!r}; there are {', '.join(KINDS)}")
        parameter = next(self.base.parameters())
        self.heads[kind] = LabelHead(self.width, labels, dropout=self.method.dropout).to(parameter.device, parameter.dtype)

    def train(self, mode: bool = True) -> "FeatureNet":
        super().train(mode)
        self.base.eval()  # frozen states have no dropout
        return self

    def learnt(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if not name.startswith("base."))


def labels_of(head: nn.Module) -> int:
    assert isinstance(head, LabelHead)
    return head.out.out_features


def save(attached: Attached, directory: Path) -> None:
    """In the layout of a peft folder; peft itself has no such method."""
    net = attached.net
    assert isinstance(net, FeatureNet)
    config = {
        "peft_type": "FEATURES",
        "base_model_name_or_path": attached.source or None,
        "luthier": asdict(attached.method),
        "heads": {kind: labels_of(head) for kind, head in net.heads.items()},
    }
    tensors = {name: value.cpu() for name, value in attached.state().items()}

    def fill(place: Path) -> None:
        write_json(place / CONFIG, config)
        write_safetensors(place / WEIGHTS, tensors)

    replace_folder(directory, fill, sum(value.nbytes for value in tensors.values()))


def read_weights(directory: Path) -> Mapping[str, Tensor]:
    stored = Safetensors([directory / WEIGHTS])
    return {name: stored.read(name) for name in stored.specs}


def put_on(model: Model, directory: Path) -> None:
    """Heads on states as `save` left them, not trainable."""
    saved = read_json(directory / CONFIG)
    for kind, labels in saved["heads"].items():
        model.net.add_head(kind, labels)
    tune(model, build(Features, saved["luthier"])).load(directory)
    model.net.requires_grad_(False).eval()


def is_saved_in(directory: Path) -> bool:
    """Whether the folder holds what `save` writes."""
    return (directory / CONFIG).is_file() and read_json(directory / CONFIG).get("peft_type") == "FEATURES"

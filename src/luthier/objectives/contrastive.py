"""Pictures and captions told apart by each other. Radford et al. 2021 (CLIP), arXiv:2103.00020, 2.3; Li et al. 2023 (BLIP-2), 2301.12597, 3.1.

The rows of a step are each other's wrong answers, so the loss is no sum over rows: a step is one forward pass. Of N pairs
    contrast  the mean of both directions' cross-entropies over N x N scores; a picture's score is that of the query nearest to the text
    match     whether picture and text belong together: N pairs that do, and for each picture and each text a hard negative, drawn the
              likelier the higher its score (measuring takes the highest)
    write     the caption's tokens from left to right, seen from the queries
The terms are added up: contrast alone is CLIP's loss, the three are BLIP-2's.

N pairs, Q queries, T tokens of a caption, D width of the shared space
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from luthier.core.contrast import contrastive_loss, hard_negatives, most_alike
from luthier.data.pictures import varied
from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, wide
from luthier.objectives._language import token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._pictures import caption, pixels_of
from luthier.sources.model import Model


class Compared(NamedTuple):
    """What one step's forward passes leave for the loss."""

    scores_NN: Tensor  # cosines, pictures by texts
    scale: Tensor | float
    matched_P2: Tensor | None  # 3 N pairs: together, another text, another picture
    written_1TD: Tensor | None  # states of all captions' tokens, one after the other


@dataclass(frozen=True)
class Contrastive(Objective):
    """A caption of more than data.length tokens is cut. Needs a model that has pictures beside texts: blip2."""

    losses: tuple[Literal["contrast", "match", "write"], ...] = ("contrast",)
    vary: float = (
        0.0  # how far pictures are moved, scaled and tinted at random when learning, and mirrored in half the cases; 0: not at all
    )
    among: int = 20  # when measured, a picture chooses its caption among so many rows, its own and others spread evenly over the batch

    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    predicts: ClassVar[str] = "labels"
    together: ClassVar[bool] = True
    pictures: ClassVar[bool] = True
    learns: ClassVar[str] = "a caption"
    verified: ClassVar[str] = "transformers 5.23 CLIP's loss and Blip2ForImageTextRetrieval's scores; matching and writing by hand"

    def __post_init__(self) -> None:
        if "contrast" not in self.losses or len(set(self.losses)) < len(self.losses):
            raise ValueError(
                f"objective contrastive needs losses with contrast among them, each once, not {', '.join(self.losses) or 'none'}"
            )
        if not 0 <= self.vary < 1 or self.among < 2:
            raise ValueError(f"objective contrastive needs 0 <= vary < 1 and among >= 2, not vary={self.vary}, among={self.among}")

    def heads(self) -> dict[str, int]:
        return {"lm": 0} if "write" in self.losses else {}  # as large as the vocabulary

    def check(self, model: Model) -> None:
        super().check(model)
        if model.net.sight is None or model.net.sight.tokens:
            raise ValueError(f"objective contrastive needs a model that compares pictures with texts (blip2), and {model.source} does not")

    def read(self, sample: Sample, model: Model) -> Reading:
        self.fields(sample)
        return Reading(sample, [caption(sample)])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end = model.tokenizer.frame()
        room = length - len(start) - len(end)
        if room < 1 or not reading.ids[0]:
            return []
        ids = start + reading.ids[0][:room] + end
        at = {"contrast": [0], "match": [0, 0, 0], "write": list(range(len(ids) - 1))}
        labels = {"contrast": [0], "match": [1, 0, 0], "write": ids[1:]}
        decode = next(i for i in (model.tokenizer.id("[DEC]"), model.tokenizer.bos, ids[0]) if i is not None)
        return [
            Example(
                ids,
                {loss: at[loss] for loss in self.losses},
                {loss: labels[loss] for loss in self.losses},
                reference=0,
                note=decode,
                pictures=pixels_of(reading.sample, model),
            )
        ]

    def forward(self, net: Any, batch: Batch) -> Compared:
        images, learning = batch.extra["images"].to(next(net.parameters()).dtype), torch.is_grad_enabled()
        seen_NSW = net.vision.hidden(varied(images, self.vary) if self.vary and learning else images)
        ids_NT, mask_NT = _padded(batch)
        scores_NN = most_alike(net.queried(seen_NSW), net.texts(ids_NT, mask_NT))
        matched = written = None
        if "match" in self.losses:
            whose_P, which_P = _pairs(wide(scores_NN) * net.scale, learning)
            matched = net.matched(seen_NSW[whose_P], ids_NT[which_P], mask_NT[which_P])
        if "write" in self.losses:
            ids_NT = ids_NT.clone()
            ids_NT[:, 0] = batch.examples[0].note  # [DEC], where the tokenizer has one: what follows is written
            written = net.written(seen_NSW, ids_NT, mask_NT)[mask_NT][None]
        return Compared(scores_NN, net.scale, matched, written)

    def loss(self, hidden: Compared, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        count = len(hidden.scores_NN)
        terms = {"contrast": Term(count * contrastive_loss(wide(hidden.scores_NN), hidden.scale), count)}
        if hidden.matched_P2 is not None:
            labels_P = batch.labels["match"].view(-1, 3).mT.flatten()
            terms["match"] = Term(F.cross_entropy(wide(hidden.matched_P2), labels_P, reduction="sum"), len(labels_P))
        if hidden.written_1TD is not None:
            terms["write"] = token_loss(hidden.written_1TD, heads, batch, "write")
        return terms

    def predict(self, hidden: Compared, heads: nn.ModuleDict, batch: Batch) -> list[int]:
        """Which of the candidates is chosen: 0 is the row's own caption."""
        count = len(hidden.scores_NN)
        rows = torch.arange(count, device=hidden.scores_NN.device)
        step = max(1, count // self.among)  # neighbours in a file are often alike
        candidates = (rows[:, None] + step * rows[: self.among]) % count
        return hidden.scores_NN.gather(1, candidates).argmax(-1).tolist()


def _pairs(scores_NN: Tensor, draw: bool) -> tuple[Tensor, Tensor]:
    """(3 N,) pictures and (3 N,) texts: each with its own, each picture with a hard text, each text with a hard picture."""
    own_N = torch.arange(len(scores_NN), device=scores_NN.device)
    text_N, picture_N = hard_negatives(scores_NN, draw), hard_negatives(scores_NN.mT, draw)
    return torch.cat([own_N, own_N, picture_N]), torch.cat([own_N, text_N, own_N])


def _padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, T) ids of the captions and their mask."""
    rows = batch.ids[0].split(list(batch.lengths))
    ids_NT = pad_sequence(list(rows), batch_first=True)
    lengths_N = torch.tensor(batch.lengths, device=ids_NT.device)
    return ids_NT, torch.arange(ids_NT.shape[1], device=ids_NT.device) < lengths_N[:, None]

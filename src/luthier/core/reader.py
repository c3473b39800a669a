"""What greedy decoding, sampling and beam search share: the settings, a conversation's memory, and reading ids into scores.

Prompts are padded on the left, so that every row's newest token stands in the last column. B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core import scores as change
from luthier.core.cache import Cache
from luthier.core.decode import Decoder, decodable
from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.transformer import Net, Transformer

Stop = Callable[[int, list[int]], bool]  # (row, its new tokens) -> whether it ends here
WORTH_COPIES = 48  # new tokens from which laying weights out anew pays for itself


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all tokens in; samples: texts for each prompt.

    beams > 1 searches instead of sampling: the `samples` best of the beams come back, a text's score being its log-probability divided
    by length ** length_penalty (new tokens, the end included).
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    samples: int = 1
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        wrong = {
            "max_tokens": (self.max_tokens < 1, "at least 1"),
            "min_tokens": (not 0 <= self.min_tokens <= self.max_tokens, f"between 0 and max_tokens={self.max_tokens}"),
            "temperature": (self.temperature < 0, "0 (the likeliest token) or more"),
            "top_k": (self.top_k < 0, "0 (all tokens) or more"),
            "top_p": (not 0 < self.top_p <= 1, "above 0 and at most 1 (all tokens)"),
            "repetition_penalty": (self.repetition_penalty <= 0, "above 0; 1 changes nothing"),
            "samples": (self.samples < 1, "at least 1"),
            "beams": (self.beams < 1, "at least 1; 1 is no search"),
        }
        for name, (bad, rule) in wrong.items():
            if bad:
                raise ValueError(f"{name}={getattr(self, name)} must be {rule}")
        if 1 < self.beams < self.samples:
            raise ValueError(f"samples={self.samples} must not exceed beams={self.beams}: the best beams are what comes back")


@dataclass
class Memory:
    """What the cache already holds of a conversation, so that its next turn reads only what is new. One row.

    It also keeps the decoder: take a new memory when weights or adapters change.
    """

    ids: list[int] = field(default_factory=list)
    cache: Cache | None = None
    decoder: Decoder | None = None

    def clear(self) -> None:
        """Forget the conversation, not how the weights are laid out."""
        self.ids, self.cache = [], None

    def shared(self, prompt: list[int]) -> int:
        """Keeps the common beginning of what is held and the prompt; its length, short of the whole prompt by one at least."""
        common = 0
        whole = self.cache is None or "virtual" not in self.cache.notes  # virtual tokens stand before the text: it is read anew
        while whole and common < min(len(self.ids), len(prompt) - 1) and self.ids[common] == prompt[common]:
            common += 1
        self.ids = self.ids[:common]
        if self.cache is not None:  # a call that was interrupted may have left more in it than ids
            self.cache.cut(common)
        return common


class Reader:
    """Feeds ids to a net and gives the scores of what comes next: through the fast decoder, the cache, or (foreign nets) from the start."""

    def __init__(
        self,
        net: Net,
        rows: int,
        sampling: Sampling,
        int8: bool = False,
        memory: Memory | None = None,
        fast: bool = True,
        images: Tensor | None = None,
    ):
        memory = memory or Memory()
        self.net, self.int8, self.sampling, self.writer, self.images = net, int8, sampling, net.writer, images
        self.cached = isinstance(self.writer, Transformer) and not self.writer.asks
        self.fast = fast and decodable(self.writer)
        if int8 and not self.fast:
            raise ValueError("int8 weights are for pre-norm models (llama, gpt2, bloom and their kind) in evaluation mode; leave int8 out")
        self.cache = memory.cache or (Cache(len(self.writer.order)) if self.cached else None)  # type: ignore[arg-type]
        self.decoder = memory.decoder
        self.rows = rows
        self.ids_BT = torch.empty(rows, 0, dtype=torch.long)
        self.mask_BT = torch.empty(rows, 0, dtype=torch.bool)

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """(B, V) scores behind the last column."""
        if self.fast and ids_BT.shape[1] == 1 and mask_BT is None and self.cache is not None and self.cache.length:
            assert isinstance(self.writer, Transformer)
            if self.decoder is None:
                self.decoder = Decoder(self.writer, len(ids_BT), self.int8, copies=self.sampling.max_tokens >= WORTH_COPIES)
            return self.decoder(ids_BT[:, 0], self.cache)
        if self.cached:
            hidden = self.net.hidden(ids_BT, mask_BT, cache=self.cache, **self._target(ids_BT), **self._shown())
            return self.net.logits(hidden[:, -1:])[:, 0]
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT
        before = (self.ids_BT.to(ids_BT), self.mask_BT.to(mask_BT)) if self.ids_BT.shape[1] else (ids_BT[:, :0], mask_BT[:, :0])
        self.ids_BT, self.mask_BT = torch.cat([before[0], ids_BT], 1), torch.cat([before[1], mask_BT], 1)
        if self.writer.asks:
            return self.writer.following(self.ids_BT, None if self.mask_BT.all() else self.mask_BT)
        hidden = self.net.hidden(self.ids_BT, None if self.mask_BT.all() else self.mask_BT)
        return self.net.logits(hidden[:, -1:])[:, 0]

    def _target(self, ids_BT: Tensor) -> dict[str, Any]:
        """Of an encoder-decoder, what its decoder reads: the start token behind a source, then what it has written."""
        if not isinstance(self.net, EncoderDecoder):
            return {}
        assert self.cache is not None
        return {"decoder_ids": ids_BT if self.cache.length else torch.full_like(ids_BT[:, :1], self.net.start)}

    def _shown(self) -> dict[str, Any]:
        """The prompts' pictures, once."""
        images, self.images = self.images, None
        return {} if images is None else {"images": images}

    def select(self, index_B: Tensor) -> None:
        """Go on with these rows, in this order."""
        if self.cache is not None:
            self.cache.rows(index_B)
        else:
            self.ids_BT, self.mask_BT = self.ids_BT[index_B], self.mask_BT[index_B]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor | None]:
    """(B, T) ids with 0 as padding, and their mask (None where all prompts are equally long)."""
    longest = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids_BT, None
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids_BT, torch.arange(longest, device=device)[None] >= longest - lengths_B[:, None]


def continued(net: Net, prompts: Sequence[Sequence[int]], times: int) -> list[list[int]]:
    """What stands before the new tokens of each row: the prompt; in an encoder-decoder, whose prompt is the source, the start token."""
    return [[net.start] if isinstance(net, EncoderDecoder) else list(prompt) for prompt in prompts for _ in range(times)]


def adjusted(
    scores_BV: Tensor, prompts: Sequence[Sequence[int]], new: Sequence[list[int]], sampling: Sampling, eos: Collection[int]
) -> Tensor:
    """The scores after the repetition penalty (prompt included) and the minimum length."""
    if sampling.repetition_penalty != 1.0:
        known = scores_BV.shape[1]  # a picture's places are no tokens
        rows = [[token for token in [*prompt, *row] if token < known] for prompt, row in zip(prompts, new, strict=True)]
        scores_BV = change.repetition_penalty(scores_BV, rows, sampling.repetition_penalty)
    return change.without(scores_BV, eos) if len(new[0]) < sampling.min_tokens else scores_BV


def widened(scores: Tensor) -> Tensor:
    """Half-precision scores are chosen from in float32."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def check(net: Net, prompts: Sequence[Sequence[int]], memory: Memory | None) -> None:
    if not net.causal and not net.asks:
        raise ValueError("this model does not write from left to right, so it cannot continue a text; choose a causal one")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i + 1} has no tokens; give it some text")
    assert memory is None or len(prompts) == 1, "a memory is of one conversation"

"""A model ready for use: the net, its tokenizer and chat template, and its anatomy; ours or transformers', the same from here on."""

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.anatomy.call import Shift
from luthier.anatomy.merge import merge
from luthier.anatomy.virtual import Rows
from luthier.core.transformer import Net
from luthier.data.illustrated import IMAGE
from luthier.data.template import Template
from luthier.data.tokenizer import Tokenizer


class Model:
    """`source` is where the weights came from, for messages and manifests; `attached` is what a tuning method left here, or None."""

    def __init__(
        self,
        net: Net,
        tokenizer: Tokenizer | None = None,
        template: Template | None = None,
        source: str = "",
        attached: Any = None,
    ):
        self.net, self.tokenizer, self.template, self.source, self.attached = net, tokenizer, template, source, attached
        # Of runs that share their rows: what these were made into, by what that follows from.
        self.made: MutableMapping[str, Any] | None = None
        if net.sight is not None and net.sight.tokens and tokenizer is not None and tokenizer.id(IMAGE) is None:
            tokenizer.add([IMAGE], special=True)  # the place of a picture is a token of its own

    @cached_property
    def anatomy(self) -> Anatomy:
        """The parts of the net by role."""
        return anatomy(self.net)

    @property
    def encoder_decoder(self) -> bool:
        """Whether a second text, the decoder's, goes in beside the first."""
        return len(self.anatomy.stacks) > 1 and "decoder" in self.anatomy.stacks and "encoder" in self.anatomy.stacks

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def logits(self, ids: Tensor, mask: Tensor | None = None, decoder_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """(batch, time, vocab) in the model's dtype: scores of the next token (causal models) or of the same one.

        ids (batch, time) int64; mask (batch, time) bool, False for padding; decoder_ids (batch, time) for encoder-decoders; inputs:
        lengths, prompts, types, positions, cache, as Net.hidden takes them. ValueError where the model has no language-model head, and for
        ids of another shape or, on the CPU, beyond the vocabulary.
        """
        return self.net.logits(self.hidden(ids, mask, decoder_ids, **inputs))

    def hidden(self, ids: Tensor, mask: Tensor | None = None, decoder_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """(batch, time, width): the states after the last norm; arguments as for `logits`."""
        for name, given in (("ids", ids), ("decoder_ids", decoder_ids)):
            if given is not None:
                self._check(name, given)
        if decoder_ids is not None:
            inputs["decoder_ids"] = decoder_ids
            if not self.encoder_decoder:
                raise ValueError(f"decoder_ids are for encoder-decoder models, and {self.source or 'this model'} is none; leave them out")
        return self.net.hidden(ids, mask, **inputs)

    def _check(self, name: str, ids: Tensor) -> None:
        if ids.ndim < 2:
            raise ValueError(f"{name} must be (batch, time), not {tuple(ids.shape)}; of one text: {name}[None]")
        if ids.ndim > 2 or ids.device.type != "cpu" or not ids.numel():
            return  # pictures and characters; elsewhere looking would make the device wait
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must be whole numbers (int64), not {ids.dtype}; Model.tokenizer makes them")
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.net.vocab:
            raise ValueError(
                f"{name} must be 0 to {self.net.vocab - 1}, and {low if low < 0 else high} is among them; is the tokenizer another model's?"
            )

    def save(self, directory: str | Path) -> None:
        """The whole model in Hugging Face's form, adapters folded in: config.json, safetensors, tokenizer, chat template.

        transformers loads it with equal logits. There whole or not at all: OSError leaves what was there before as it was.
        """
        from luthier.sources.save import save_model

        save_model(self, Path(directory))

    def save_adapter(self, directory: str | Path) -> None:
        """Only what was trained, in peft's form where peft has one. ValueError where nothing is attached."""
        self._tuned().save(Path(directory))

    def merge(self) -> float:
        """Folds the adapters at work into the weights for good; the largest difference of a logit before and after."""
        self._tuned()
        difference = merge(self.anatomy)
        self.attached = None
        return difference

    def running(self, name: str = "") -> list[AbstractContextManager[None]]:
        """What a text runs under, once in each: as the model stands, or of adapters in parallel one after the other.

        name: of the one adapter that the text asks for. ValueError where there is none of that name.
        """
        if self.attached is None and name:
            raise ValueError(f"no adapter is called {name!r}: {self.source or 'this model'} has none that was trained or loaded with it")
        return [nullcontext()] if self.attached is None else self.attached.running(name)

    def each_under(self, names: Sequence[str], do: Callable[[list[int]], list[Any]], times: int = 1) -> list[Any]:
        """What `do` makes of items, by their numbers: all that name one adapter at once, under it. In the items' order, `times` of each."""
        found: dict[int, list[Any]] = {}
        for name in dict.fromkeys(names):
            mine = [i for i, other in enumerate(names) if other == name]
            with self.running(name)[0] if name else nullcontext():
                made = do(mine)
            found |= {i: made[at * times : (at + 1) * times] for at, i in enumerate(mine)}
        return [each for i in range(len(names)) for each in found[i]]

    def before_texts(self) -> int:
        """How many positions virtual tokens and prefixes of the adapters now at work take before a text, at most."""
        if self.attached is None:
            return 0
        parts = self.anatomy.at_work()
        rows = sum(part.count() for here in parts for part in here if isinstance(part, Rows) and part.stack)
        return rows + max((sum(part.by for part in here if isinstance(part, Shift)) for here in parts), default=0)

    def _tuned(self) -> Any:
        if self.attached is None:
            raise ValueError("this model has no adapter: tune it first (luthier.tune), or load it with adapter=FOLDER")
        return self.attached

"""A transformers model object as a Net: packed or padded tokens go in and come out the way of ours.

Every batch is turned into right-padded rows before the model sees it: there, all architectures agree on positions and masks. How a model
treats its input (causal or not, more after the head) is measured on a few tokens when it is wrapped, not guessed from its name.
Legend: B batch, T length, R rows (documents), L longest row, D width, V vocabulary
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.cache import Cache
from luthier.core.encoder_decoder import again
from luthier.core.heads import KINDS, LabelHead
from luthier.core.recompute import recomputed
from luthier.core.transformer import Net
from luthier.data.tokenizer import Tokenizer
from luthier.sources._foreign_heads import label_head, language_head
from luthier.sources.checkpoint import template_of
from luthier.sources.directory import read_tokenizer
from luthier.sources.model import Model


def wrap(source: Any, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Model:
    """A Model around a transformers model object, or around (model, tokenizer). The object itself is used, not a copy.

    Without a tokenizer beside it, the one in the folder it was loaded from is taken, if that is a folder here.
    """
    module: Any
    module, theirs = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if "PreTrainedModel" not in (each.__name__ for each in type(module).__mro__):
        raise ValueError(
            f"cannot load a model from a {type(module).__name__}; give a folder, a .gguf file, pkg://, hub:// or a transformers model"
        )
    if dtype is not None:
        module = module.to(dtype)
    name = module.name_or_path or type(module).__name__
    folder = Path(module.name_or_path or "nowhere")
    tokenizer = read_tokenizer(folder) if theirs is None and folder.is_dir() else theirs and tokenizer_of(theirs)
    return Model(Foreign(module.to(device)).eval(), tokenizer, tokenizer and template_of(tokenizer, name), name)


def tokenizer_of(theirs: Any) -> Tokenizer:
    """Ours around the tokenizers object inside a fast transformers tokenizer."""
    ids = {role: getattr(theirs, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(theirs.backend_tokenizer, **ids)
    tokenizer.chat_template = theirs.chat_template if isinstance(theirs.chat_template, str) else None
    return tokenizer


class Foreign(Net):
    """`module` is the transformers model, whose own paths anatomy and adapters go by."""

    module: Any  # PreTrainedModel
    config: Any
    width: int

    def __init__(self, module: Any):
        super().__init__()
        self.module, self.config = module, module.config
        self.accepts = set(inspect.signature(module.base_model.forward).parameters)
        self.encoder_decoder = bool(self.config.is_encoder_decoder)
        text = self.config.get_text_config(decoder=True)
        self.pad = text.pad_token_id if isinstance(text.pad_token_id, int) and text.pad_token_id >= 0 else 0
        start = getattr(self.config, "decoder_start_token_id", None)  # not in every configuration
        self.start = self.pad if start is None else start  # before every target of an encoder-decoder
        self.causal = self.encoder_decoder or self._measure_causal()
        self.pool = "last" if self.causal else "first"
        self.heads = nn.ModuleDict()
        if module.get_output_embeddings() is not None:
            with evaluating(module):
                self.heads["lm"] = language_head(module, self._last_states)
        else:
            self.heads.update(label_head(module))
        self.width = text.hidden_size
        self._sees_prompts: bool | None = None

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return self.module.get_input_embeddings().weight.shape[0]

    @property
    def recompute(self) -> bool:
        """Whether a block's input alone is kept for backward, which runs the block again with the adapters of its batch."""
        return any(getattr(part, "gradient_checkpointing", False) for part in self.module.modules())

    @recompute.setter
    def recompute(self, on: bool) -> None:
        parts = [part for part in self.module.modules() if hasattr(part, "gradient_checkpointing")]
        if on and not parts:
            raise ValueError(f"{type(self.module).__name__} cannot run its blocks again in backward; training.recompute: false")
        for part in parts:
            part.gradient_checkpointing, part._gradient_checkpointing_func = on, recomputed

    def hidden(  # type: ignore[override]
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        prompts: tuple[int, ...] | None = None,
        types: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        allow: Tensor | None = None,
        decoder_ids: Tensor | None = None,
        decoder_lengths: tuple[int, ...] | None = None,
        stack: str = "",
    ) -> Tensor:
        if cache is not None or allow is not None:
            what = "a cache" if cache is not None else "other masks than causal and padding"
            raise ValueError(
                f"{type(self.module).__name__} is a transformers model, which does not take {what} here; load it from its folder"
            )
        if positions is not None and "position_ids" not in self.accepts:
            raise ValueError(f"{type(self.module).__name__} finds its positions by itself; leave them out")
        if prompts is not None and lengths is None:
            raise ValueError("prompts are the first tokens of packed documents: give their lengths too")
        if stack == "encoder":
            return self._encoder_states(ids, mask, lengths)
        if stack:
            decoder_ids, decoder_lengths = again(ids, self.start, mask, lengths), lengths
        if self.encoder_decoder:
            return self._decoder_states(ids, mask, decoder_ids, lengths, decoder_lengths)
        extra = {"token_type_ids": types if "token_type_ids" in self.accepts else None, "position_ids": positions}
        extra = {name: value for name, value in extra.items() if value is not None}
        if lengths is None and (mask is None or mask.all()):
            return self._states(ids, None, extra)
        real_BT, keep_RL = _rows(ids, mask, lengths)
        pad = {"input_ids": self.pad}
        padded = {
            name: _spread(value.expand_as(ids)[real_BT], keep_RL, pad.get(name, 0)) for name, value in {"input_ids": ids, **extra}.items()
        }
        attention = keep_RL.long() if prompts is None else self._prompt_mask(keep_RL, prompts)
        states_RLD = self._states(padded.pop("input_ids"), attention, padded)
        out_BTD = states_RLD.new_zeros(*ids.shape, states_RLD.shape[-1])
        return out_BTD.masked_scatter(real_BT[..., None], states_RLD[keep_RL])

    def add_head(self, kind: str, labels: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"no head called {kind!r}; there are {', '.join(KINDS)}")
        weight = self.module.get_input_embeddings().weight
        head = LabelHead(self.width, labels)
        nn.init.normal_(head.out.weight, std=0.02)
        nn.init.zeros_(head.out.bias)
        self.heads[kind] = head.to(weight.device, weight.dtype)

    def _states(self, ids: Tensor, attention: Tensor | None, extra: dict[str, Tensor]) -> Tensor:
        """Right-padded rows through the backbone, heads left out."""
        inputs = (
            extra
            | ({} if attention is None else {"attention_mask": attention})
            | ({"use_cache": False} if "use_cache" in self.accepts else {})
        )
        return self.module.base_model(input_ids=ids, **inputs)[0]

    def _decoder_states(
        self,
        ids: Tensor,
        mask: Tensor | None,
        decoder_ids: Tensor | None,
        lengths: tuple[int, ...] | None = None,
        decoder_lengths: tuple[int, ...] | None = None,
    ) -> Tensor:
        if decoder_ids is None or (lengths is None) != (decoder_lengths is None):
            raise ValueError(f"{type(self.module).__name__} reads one text and writes another: give ids and decoder_ids, lengths for both")
        if lengths is not None:
            (real, keep), (decoder_real, decoder_keep) = _rows(ids, None, lengths), _rows(decoder_ids, None, decoder_lengths)
            rows, decoder_rows = _spread(ids[real], keep, self.pad), _spread(decoder_ids[decoder_real], decoder_keep, self.pad)
            return self._decoder_states(rows, keep.long(), decoder_rows)[decoder_keep][None]
        body = self.module.base_model
        if body is self.module and self.module.get_output_embeddings() is not None:  # T5's class is its own backbone
            inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
            return self.module(**inputs, use_cache=False, output_hidden_states=True).decoder_hidden_states[-1]
        return body(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False)[0]

    def _encoder_states(self, ids: Tensor, mask: Tensor | None, lengths: tuple[int, ...] | None) -> Tensor:
        encoder = self.module.get_encoder()
        if lengths is None:
            return encoder(input_ids=ids, attention_mask=mask)[0]
        real, keep = _rows(ids, None, lengths)
        return encoder(input_ids=_spread(ids[real], keep, self.pad), attention_mask=keep.long())[0][keep][None]

    def _prompt_mask(self, keep_RL: Tensor, prompts: tuple[int, ...]) -> Tensor:
        """(R, 1, L, L) additive: causal, but the tokens of a prompt see each other."""
        if self._sees_prompts is None:
            self._sees_prompts = self._measure_prompts()
        if not self._sees_prompts:
            raise ValueError(
                f"{type(self.module).__name__} does not take a mask under which a prompt sees itself in both directions; use prompt: causal"
            )
        return additive(keep_RL, prompts, self.module.get_input_embeddings().weight.dtype)

    def _last_states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states that the head reads, and the model's own logits, of a few tokens."""
        inputs = {"decoder_input_ids": ids} if self.encoder_decoder else {}
        states = self._decoder_states(ids, None, ids) if self.encoder_decoder else self._states(ids, None, {})
        return states, self.module(input_ids=ids, **inputs).logits

    @torch.no_grad()
    def _measure_causal(self) -> bool:
        """Whether a later token leaves an earlier state as it is."""
        a, b = self._sample([5, 6, 7]), self._sample([5, 6, 8])
        with evaluating(self.module):
            return same(self._states(a, None, {})[0, :2], self._states(b, None, {})[0, :2])

    @torch.no_grad()
    def _measure_prompts(self) -> bool:
        """Whether the mask does what it says: token 1 of the prompt reaches token 0, token 2 behind it does not."""

        def first(ids: list[int]) -> Tensor:
            keep = torch.ones(1, 3, dtype=torch.bool, device=self._device)
            mask = additive(keep, (2,), self.module.get_input_embeddings().weight.dtype)
            return self._states(self._sample(ids), mask, {})[0, 0]

        with evaluating(self.module):
            try:
                base = first([5, 6, 7])
                return not same(base, first([5, 9, 7])) and same(base, first([5, 6, 9]))
            except (ValueError, RuntimeError, IndexError, TypeError):
                return False

    @property
    def _device(self) -> torch.device:
        return self.module.get_input_embeddings().weight.device

    def _sample(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self._device) % self.vocab


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout inside."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding."""
    return float((a - b).abs().max()) <= 8 * torch.finfo(a.dtype).eps * float(a.abs().max())


def additive(keep_RL: Tensor, prompts: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """0 where a query may look, the type's lowest number where not (rows of padding look at themselves)."""
    length = keep_RL.shape[1]
    at = torch.arange(length, device=keep_RL.device)
    limit_R = torch.tensor(prompts, device=keep_RL.device)
    allowed_RLL = (at[None, :] <= at[:, None])[None] | (at[None, None, :] < limit_R[:, None, None])
    allowed_RLL = allowed_RLL & (keep_RL[:, None, :] | (at[None, :] == at[:, None])[None])
    return torch.zeros(allowed_RLL.shape, dtype=dtype, device=keep_RL.device).masked_fill(~allowed_RLL, torch.finfo(dtype).min)[:, None]


def _rows(ids: Tensor, mask: Tensor | None, lengths: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Which tokens are real (B, T), and where they stand once every document has a row of its own, real tokens first (R, L)."""
    if lengths is not None:
        if ids.shape[0] != 1 or sum(lengths) != ids.shape[1]:
            raise ValueError(
                f"packed documents of {sum(lengths)} tokens in all need ids of shape (1, {sum(lengths)}), not {tuple(ids.shape)}"
            )
        real = torch.ones_like(ids, dtype=torch.bool)
        sizes = torch.tensor(lengths, device=ids.device)
    else:
        assert mask is not None
        real = mask.bool()
        sizes = real.sum(1)
    longest = max(int(sizes.max()), 1)
    return real, torch.arange(longest, device=ids.device) < sizes[:, None]


def _spread(values_N: Tensor, keep_RL: Tensor, fill: int) -> Tensor:
    """Values of the real tokens, document by document, in right-padded rows."""
    return torch.full(keep_RL.shape, fill, dtype=values_N.dtype, device=values_N.device).masked_scatter(keep_RL, values_N)

"""Grow a model's vocabulary: new tokens start from the mean of the pieces that the old tokenizer cuts them into.

V vocabulary, D width
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.core.transformer import Transformer
from luthier.data.tokenizer import Tokenizer
from luthier.sources.model import Model
from luthier.tuning._own import vocabulary


def grow(model: Model, tokens: Sequence[str] | str | Path) -> list[int]:
    """Add tokens to the tokenizer, the embedding and the head, and return their ids.

    tokens: the tokens, or the folder of a second tokenizer whose tokens are taken. Those that are there already stay as they are. Ties
    between embedding and head stay. Methods attached afterwards train the new vectors and save them with the adapter.
    """
    tokenizer, body = model.tokenizer, model.anatomy
    if tokenizer is None:
        raise ValueError("this model has no tokenizer, so its vocabulary cannot grow; load it with one")
    wanted = of_tokenizer(Path(tokens)) if isinstance(tokens, str | Path) else list(tokens)
    if not all(wanted):
        raise ValueError("a token to add is empty")
    new = [token for token in dict.fromkeys(wanted) if not _known(tokenizer, token)]
    if any(site.around is not None for site in vocabulary(body)):
        raise ValueError("an adapter is around the embedding or the head already: grow the vocabulary before tuning")
    pieces = [tokenizer.encode(token) for token in new]
    tokenizer.add(new)
    ids = [id for token in new if (id := tokenizer.id(token)) is not None]
    _start(body, ids, pieces)
    body.grown |= dict(zip(ids, new, strict=True))
    return ids


@contextmanager
def back_if_it_fails(model: Model) -> Iterator[None]:
    """Inside, the vocabulary may grow; where something fails then, model and tokenizer are as they were."""
    body, tokenizer = model.anatomy, model.tokenizer
    before, grown = [(module, dict(module._parameters)) for _, module in body.modules()], dict(body.grown)
    config, vocab = getattr(body.net, "config", None), len(body.embed.module.weight)  # type: ignore[arg-type]
    written = tokenizer.inner.to_str() if tokenizer is not None else ""
    try:
        yield
    except BaseException:
        for module, parameters in before:
            for name, old in parameters.items():
                if old is not module._parameters[name] and old is not None:
                    _put(module, name, old)
        body.grown = grown
        _say(body, config, vocab)
        if tokenizer is not None:
            tokenizer.add([])  # what it remembers of words goes
            tokenizer.inner = type(tokenizer.inner).from_str(written)
        raise


def of_tokenizer(folder: Path) -> list[str]:
    """The tokens of a tokenizer's folder as text, without its special ones and without broken characters."""
    other = Tokenizer.from_directory(folder)
    texts = [other.decode([id]) for id in range(other.vocab)]
    return [text for text in texts if text.strip() and "\ufffd" not in text]


def _known(tokenizer: Tokenizer, token: str) -> bool:
    ids = tokenizer.encode(token)
    return tokenizer.id(token) is not None or (len(ids) == 1 and tokenizer.decode(ids) == token)


def _start(body: Anatomy, ids: list[int], pieces: list[list[int]]) -> None:
    """Rows for these ids: the mean of the rows of their pieces; everywhere a vocabulary's parameter is held."""
    rows = max([*ids, -1]) + 1
    for site in vocabulary(body):
        for old in list(site.module._parameters.values()):
            if old is not None:
                _replace(body, old, _grown(old, rows, ids, pieces))
    for site in [body.embed] + ([body.head] if body.has("head") else []):
        bias = site.module._parameters.get("bias")  # a tied head's own
        if bias is not None and bias.shape[0] < rows:
            _replace(body, bias, _grown(bias, rows, ids, pieces))
    _say(body, getattr(body.net, "config", None), body.embed.module.weight.shape[0])  # type: ignore[union-attr]


def _say(body: Anatomy, config: Any, vocab: int) -> None:
    """In the settings."""
    if isinstance(body.net, Transformer):
        body.net.config = replace(config, vocab=vocab)
    else:
        body.root.config.get_text_config().vocab_size = vocab  # type: ignore[union-attr, operator]


@torch.no_grad()
def _grown(old: nn.Parameter, rows: int, ids: list[int], pieces: list[list[int]]) -> nn.Parameter:
    table = torch.cat([old, old.new_zeros(max(rows - len(old), 0), *old.shape[1:])])
    known = torch.arange(len(old), device=old.device)
    for id, parts in zip(ids, pieces, strict=True):
        table[id] = (old[parts] if parts else old[known]).mean(0)
    return nn.Parameter(table, requires_grad=old.requires_grad)


def _replace(body: Anatomy, old: Tensor, new: nn.Parameter) -> None:
    for site, name in body.owners(old):
        _put(site.module, name, new)


def _put(module: nn.Module, name: str, new: nn.Parameter) -> None:
    module._parameters[name] = new
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(new)
    elif isinstance(module, nn.Linear):
        module.out_features = len(new)

"""New tokens behind prompts: greedy, sampled or by beam search, for several prompts at once.

Prompts are padded on the left, so that every row's newest token stands in the last column. B rows, T tokens, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from luthier.core import scores as change
from luthier.core.beam import search
from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.reader import Memory, Reader, Sampling, Stop, adjusted, check, continued, left_padded, widened
from luthier.core.transformer import Net


def choose(scores_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """One token for each row, (B,): the likeliest, or drawn from what temperature, top-k and top-p leave."""
    if sampling.temperature == 0:
        return scores_BV.argmax(-1)
    scores_BV = change.top_p(change.top_k(scores_BV / sampling.temperature, sampling.top_k), sampling.top_p)
    return torch.multinomial(scores_BV.softmax(-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def stream_ids(
    net: Net,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),
    *,
    eos: Collection[int] = (),
    stop: Stop | None = None,
    generator: torch.Generator | None = None,
    memory: Memory | None = None,
    int8: bool = False,
    fast: bool = True,
    images: Tensor | None = None,
) -> Iterator[list[int | None]]:
    """At every step the next token of each row, None for rows that have ended (an end token is given out once).

    Rows are prompts, each `samples` times in turn. memory: of one prompt, holding what the net has read before. fast: by the decoder
    with the fewest operators, where it knows the net. images (N, C, Y, X): the prompts' pictures, for a net that sees. ValueError for an
    empty prompt or one beyond the model's positions.
    """
    check(net, prompts, memory)
    device = next(net.parameters()).device
    repeats = sampling.samples
    rows = continued(net, prompts, repeats)
    memory = None if isinstance(net, EncoderDecoder) or images is not None else memory  # a source or a picture is read anew
    reader = Reader(net, len(rows), sampling, int8, memory, fast, images)
    known = memory.shared(rows[0]) if memory and reader.cached else 0
    ids_BT, mask_BT = left_padded([prompt[known:] for prompt in prompts], device)
    scores_BV = reader(ids_BT, mask_BT)
    if repeats > 1:
        reader.select(torch.arange(len(prompts), device=device).repeat_interleave(repeats))
        scores_BV = scores_BV.repeat_interleave(repeats, 0)
    if memory:
        memory.ids, memory.cache = list(rows[0]), reader.cache
    new: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    for step in range(sampling.max_tokens):
        chosen_B = choose(adjusted(widened(scores_BV), rows, new, sampling, eos), sampling, generator)
        given: list[int | None] = []
        for row, token in enumerate(chosen_B.tolist()):
            given.append(None if ended[row] else token)
            new[row].append(token)  # a row that has ended goes on unseen: the others' kernels stay the same
            ended[row] = ended[row] or token in eos or (stop is not None and stop(row, new[row]))
        yield given
        if all(ended) or step == sampling.max_tokens - 1:
            return
        scores_BV = reader(chosen_B[:, None])
        if memory:
            memory.ids.append(new[0][-1])
            memory.decoder = reader.decoder


def generate_ids(net: Net, prompts: Sequence[Sequence[int]], sampling: Sampling = Sampling(), **options: object) -> list[list[int]]:
    """The new tokens of each row, with the end token where there was one; options as for `stream_ids`."""
    if sampling.beams > 1:
        return search(net, prompts, sampling, **options)  # type: ignore[arg-type]
    rows: list[list[int]] = [[] for _ in range(len(prompts) * sampling.samples)]
    if not prompts:
        return rows
    for given in stream_ids(net, prompts, sampling, **options):  # type: ignore[arg-type]
        for row, token in zip(rows, given, strict=True):
            if token is not None:
                row.append(token)
    return rows

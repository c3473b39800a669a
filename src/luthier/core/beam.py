"""Beam search: the most probable continuations, kept some at a time. Freitag and Al-Onaizan 2017, arXiv:1702.01806, section 2.

Ends as transformers' does (early_stopping=False): when every place among the finished is taken and the best running beam, at its present
length, scores below the worst of them. P prompts, W beams, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from luthier.core.reader import Reader, Sampling, Stop, adjusted, check, continued, left_padded, widened
from luthier.core.transformer import Net


@dataclass
class Beams:
    """The search behind one prompt: running beams with their log-probabilities, and finished ones with their scores, best first."""

    new: list[list[int]]
    log_probability: list[float]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def finish(self, score: float, tokens: list[int], places: int) -> None:
        self.finished = sorted([*self.finished, (score, tokens)], key=lambda pair: -pair[0])[:places]


@torch.inference_mode()
def search(
    net: Net,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos: Collection[int] = (),
    stop: Stop | None = None,
    generator: torch.Generator | None = None,
    int8: bool = False,
    fast: bool = True,
    images: torch.Tensor | None = None,
) -> list[list[int]]:
    """The `samples` best new token lists of each prompt in turn. No chance is in it: temperature, top_k, top_p, generator are not used."""
    check(net, prompts, None)
    width, device = sampling.beams, next(net.parameters()).device
    rows = continued(net, prompts, width)
    reader = Reader(net, len(rows), sampling, int8, None, fast, images)
    scores_BV = reader(*left_padded(prompts, device)).repeat_interleave(width, 0)
    reader.select(torch.arange(len(prompts), device=device).repeat_interleave(width))
    # All beams start equal, so only the first may branch.
    searches = [Beams([[] for _ in range(width)], [0.0] + [-1e9] * (width - 1)) for _ in prompts]
    for length in range(1, sampling.max_tokens + 1):
        new = [tokens for beams in searches for tokens in beams.new]
        log_BV = adjusted(widened(scores_BV).log_softmax(-1), rows, new, sampling, eos)
        past_B1 = torch.tensor([x for beams in searches for x in beams.log_probability], dtype=log_BV.dtype, device=device)[:, None]
        total_PN = (log_BV + past_B1).view(len(prompts), -1)
        # So many that `width` are left to go on with even if every end token comes first in every beam.
        best, index = total_PN.topk(max(2, 1 + len(eos)) * width)
        parents: list[int] = []
        for prompt, beams in enumerate(searches):
            chosen = _advance(beams, best[prompt].tolist(), index[prompt].tolist(), log_BV.shape[1], length, sampling, eos, stop, prompt)
            parents.extend(prompt * width + beam for beam in chosen)
        if all(beams.done for beams in searches) or length == sampling.max_tokens:
            break
        reader.select(torch.tensor(parents, device=device))
        scores_BV = reader(torch.tensor([[tokens[-1]] for beams in searches for tokens in beams.new], device=device))
    return [tokens for beams in searches for _, tokens in beams.finished[: sampling.samples]]


def _advance(
    beams: Beams,
    best: list[float],
    index: list[int],
    vocab: int,
    length: int,
    sampling: Sampling,
    eos: Collection[int],
    stop: Stop | None,
    row: int,
) -> list[int]:
    """Takes the best candidates in: which beams they continue."""
    new, log_probability, parents = [], [], []
    for place, (score, flat) in enumerate(zip(best, index, strict=True)):
        beam, token = divmod(flat, vocab)
        tokens = [*beams.new[beam], token]
        if length == sampling.max_tokens or token in eos or (stop is not None and stop(row, tokens)):
            if place < sampling.beams and not beams.done:
                beams.finish(score / length**sampling.length_penalty, tokens, sampling.beams)
        elif len(new) < sampling.beams:
            new.append(tokens)
            log_probability.append(score)
            parents.append(beam)
    if new:
        for _ in range(sampling.beams - len(new)):  # stop strings may end more beams than there are candidates left
            new.append(new[0])
            log_probability.append(-1e9)
            parents.append(parents[0])
        beams.new, beams.log_probability = new, log_probability
        full = len(beams.finished) == sampling.beams
        beams.done = beams.done or (full and log_probability[0] / length**sampling.length_penalty <= beams.finished[-1][0])
        return parents
    beams.done = True
    return list(range(sampling.beams))

"""Luthier's side of the data benchmark: what a run does before the model sees a batch, for one epoch."""

import os
import sys
import time

from benchmarks._rounds import serve

os.environ["TOKENIZERS_PARALLELISM"] = "true"  # _rounds switches it off, for sides that fork

from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.data.tokenizer import Tokenizer
from luthier.models.llama import Llama
from luthier.objectives._batch import Size
from luthier.objectives.chat import Chat
from luthier.sources.model import Model
from luthier.sources.open import open_checkpoint

LENGTH, TOKENS = 1024, 8192


class Timed(Tokenizer):
    """Adds up the time spent tokenising."""

    seconds = 0.0

    def encode_spans(self, texts, spans):
        begun = time.perf_counter()
        found = super().encode_spans(texts, spans)
        Timed.seconds += time.perf_counter() - begun
        return found


def main(source: str, file: str) -> None:
    checkpoint = open_checkpoint(source)
    given = checkpoint.tokenizer
    assert given is not None
    net = Llama(vocab=given.vocab, width=8, layers=1, heads=1, kv_heads=1, hidden=8).build()  # never asked
    texts = rendered(checkpoint.template, file)

    def work() -> dict:
        tokenizer = Timed(given.inner, given.bos, given.eos, given.pad, given.unk)  # remembers no words yet
        model = Model(net, tokenizer, checkpoint.template, source)
        Timed.seconds = 0.0
        begun, cpu = time.perf_counter(), time.process_time()
        stream = open_stream(Data(file, length=LENGTH, held_out=0), 0)
        batches = Chat().batches(stream, model, Size(tokens=TOKENS, micro_tokens=TOKENS), LENGTH)
        tokens = learnt = 0
        seen: set[int] = set()  # the last step may take rows of the next epoch, which the other side does not count
        while len(seen) < stream.epoch_size:
            for batch in next(batches):
                fresh = [example for example in batch.examples if example.row not in seen]
                seen.update(example.row for example in fresh)
                tokens += sum(len(example.ids) for example in fresh)
                learnt += sum(len(example.labels["lm"]) for example in fresh)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        spent = Timed.seconds
        begun = time.perf_counter()
        given.inner.encode_batch_fast(texts, add_special_tokens=False)
        alone = time.perf_counter() - begun
        return {"rows": len(seen), "tokens": tokens, "learnt": learnt, "seconds": seconds, "cpu": cpu, "tokenising": spent, "alone": alone}

    serve({}, work)


def rendered(template, file: str) -> list[str]:
    stream = open_stream(Data(file, held_out=0), 0)
    return [template.render(next(stream).row["messages"]) for _ in range(stream.epoch_size)]


if __name__ == "__main__":
    main(*sys.argv[1:])

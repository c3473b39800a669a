"""XLNet's pre-training and writing: orders by enumeration, masks and greedy texts by transformers, nothing seen before its turn."""

import itertools
import random
from collections import Counter

import pytest
import torch
import transformers as hf
from tokenizers import processors
from torch.nn import functional as F
from transformers import DataCollatorForPermutationLanguageModeling, PreTrainedTokenizerFast

from luthier.core.generate import generate_ids
from luthier.core.names import import_state
from luthier.core.reader import Sampling
from luthier.data.stream import Sample
from luthier.models.xlnet import XLNet
from luthier.objectives._batch import collate, encode, once
from luthier.objectives.permute import Permute, allowed, drawn
from luthier.sources.generate import generate_texts
from luthier.sources.model import Model

TEXT = "the cat sat on a mat over the town she ran on a dog what is in the town where he was"


@pytest.fixture
def model(wordpiece) -> Model:
    torch.manual_seed(0)
    net = XLNet(vocab=wordpiece.vocab, width=16, layers=2, heads=2, hidden=24).build().double().eval()
    for p in net.parameters():
        p.data.normal_(std=0.3)
    return Model(net, wordpiece, source="a tiny xlnet")


def test_every_order_of_the_predicted_tokens_is_as_likely_and_its_mask_is_the_papers():
    """With share 1 all tokens are predicted: all 24 orders of 4 tokens, each token looking at those before it (section 2.2, z_<t)."""
    counts = Counter(tuple(drawn(4, 1, 5, random.Random(seed))) for seed in range(6000))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert sum((count - 250) ** 2 / 250 for count in counts.values()) < 49.7  # chi-square, 23 degrees of freedom, 0.1 per cent
    for order in itertools.permutations(range(4)):
        allow = allowed(order, 4)
        for t, place in enumerate(order):
            assert allow[place].nonzero()[:, 0].tolist() == sorted(order[:t])
    assert allowed([2, 0], 4).tolist() == [
        [False, True, True, True],
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, True],
    ]


def test_about_one_token_of_share_is_predicted_in_spans_up_to_the_longest():
    sizes, lengths, places = [], Counter(), Counter()
    for seed in range(3000):
        order = drawn(120, 6, 5, random.Random(seed))
        sizes.append(len(order))
        places.update(order)
        runs = sorted(order)
        first = next((i for i in range(1, len(runs)) if runs[i] != runs[i - 1] + 1), len(runs))
        lengths[first] += 1
    assert sum(sizes) / len(sizes) == pytest.approx(20, rel=0.05)
    assert all(600 * 0.85 < lengths[n] < 600 * 1.25 for n in range(1, 6))  # uniform from 1 to 5; two spans may touch
    assert drawn(1, 6, 5, random.Random(0)) == [0]


def test_the_mask_is_that_of_transformers_collator(wordpiece):
    """For the order that its ranks say; it puts [MASK] into the content and knows only halves of a text, which we do not follow."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=wordpiece.inner, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
    collator = DataCollatorForPermutationLanguageModeling(theirs)
    ids = torch.tensor([wordpiece.encode(TEXT)[:20]])
    for seed in range(20):
        torch.manual_seed(seed)
        _, perm_mask, _, labels = collator.torch_mask_tokens(ids.clone())
        predicted = (labels[0] != -100).nonzero()[:, 0].tolist()
        seen = (perm_mask[0] == 0).bool()
        order = sorted(predicted, key=lambda place: int(seen[place, predicted].sum()))  # the later, the more it sees
        assert torch.equal(allowed(order, 20), seen)


def test_the_loss_is_torchs_over_each_tokens_own_query(model):
    """One query at a time, the tokens that come later in the order replaced by others."""
    (batch,) = once(Permute(share=3), [{"text": TEXT}], model, 64)
    order, length = batch.examples[0].note.predicted, batch.tokens
    term = Permute().loss(Permute().forward(model.net, batch), model.net.heads, batch)["permute"]
    want = torch.zeros((), dtype=torch.double)
    for t, place in enumerate(order):
        ids = batch.ids.clone()
        ids[0, order[t:]] = 9
        allow = allowed(order, length)[None]
        state = model.net.hidden(ids, allow=allow, targets=torch.tensor([[place]]))
        want += F.cross_entropy(model.net.logits(state)[0], batch.ids[:, place], reduction="sum")
    torch.testing.assert_close(term.sum, want)
    assert term.count == len(order) == len(set(order))


@torch.no_grad()
def test_a_batch_is_its_documents_and_memory_is_read_before_them(model):
    samples = [Sample({"text": text}, 0, i, 0) for i, text in enumerate((TEXT, "the dog ran", TEXT[:40]))]
    objective = Permute(memory=5)
    examples = [example for found in encode(objective, samples, model, 12) for example in found]
    assert [len(example.note.before) for example in examples][:3] == [0, 5, 5] and len(examples) >= 5
    whole = collate(examples)
    together = objective.loss(objective.forward(model.net, whole), model.net.heads, whole)["permute"].sum
    parts = [collate([example]) for example in examples]
    alone = [objective.loss(objective.forward(model.net, part), model.net.heads, part)["permute"].sum for part in parts]
    torch.testing.assert_close(together, torch.stack(alone).sum())
    without = [
        objective.loss(Permute().forward(model.net, collate([replaced(e)])), model.net.heads, collate([e]))["permute"].sum for e in examples
    ]
    assert float((alone[1] - without[1]).abs()) > 1e-3 and torch.equal(alone[0], without[0])


def replaced(example):
    from dataclasses import replace

    return replace(example, note=example.note._replace(before=[]))


def test_the_special_tokens_stand_where_the_tokenizers_own_form_has_them(wordpiece):
    assert wordpiece.frame() == ([2], [3])
    before = wordpiece.inner.post_processor
    try:
        wordpiece.inner.post_processor = processors.TemplateProcessing("$A [SEP] [CLS]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        assert wordpiece.frame() == ([], [3, 2])  # XLNet's
    finally:
        wordpiece.inner.post_processor = before


@torch.no_grad()
def test_greedy_texts_are_those_of_transformers(model):
    net = model.net.float()
    theirs = hf.XLNetLMHeadModel(hf.XLNetConfig(**net.config.to_config())).eval()
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = None
    names, state = net.config.names({"lm": 0}), theirs.state_dict()
    net.load_state_dict(import_state(names, {name.path: state[name.path] * 8 for name in names.values()}), strict=False)
    theirs.load_state_dict({name: value * 8 for name, value in state.items()})
    ids = torch.tensor([model.tokenizer.encode(TEXT)[:9]])
    want = theirs.generate(ids, max_new_tokens=8, do_sample=False, use_mems=False, pad_token_id=0)[0, 9:].tolist()
    assert len(set(want)) > 2
    assert generate_ids(net, [ids[0].tolist()], Sampling(max_tokens=8, temperature=0)) == [want]
    short = ids[0, :4].tolist()
    alone = generate_ids(net, [short], Sampling(max_tokens=8, temperature=0))
    assert generate_ids(net, [ids[0].tolist(), short], Sampling(max_tokens=8, temperature=0)) == [want, *alone]
    assert len(generate_ids(net, [short], Sampling(max_tokens=3, beams=3))[0]) == 3
    assert len(generate_texts(model, ["the cat"], max_tokens=3, samples=2, seed=0)) == 2


def test_other_models_and_settings_are_refused(model, decoder):
    with pytest.raises(ValueError, match="objective permute is for xlnet"):
        Permute().check(decoder()[0])
    with pytest.raises(ValueError, match="share >= 1"):
        Permute(share=0)
    with pytest.raises(ValueError, match="does not ask for the next token"):
        decoder()[0].net.following(torch.zeros(1, 2, dtype=torch.long))

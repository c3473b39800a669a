"""Held-out loss and figures against transformers' loss and scikit-learn, over rows packed as in training."""

import math
from collections.abc import Sequence

import pytest
import tokenizers
import torch
import transformers
from sklearn.metrics import accuracy_score
from tokenizers import decoders, models, pre_tokenizers

from luthier.core.names import import_state
from luthier.data.template import named
from luthier.data.tokenizer import Tokenizer
from luthier.evaluation._measure import check_fit, held_out_loss, measure, split
from luthier.evaluation.accuracy import Accuracy
from luthier.evaluation.bleu import BLEU
from luthier.evaluation.exact_match import ExactMatch
from luthier.evaluation.perplexity import Perplexity
from luthier.evaluation.spearman import Spearman
from luthier.models.llama import Llama
from luthier.objectives.causal import Causal
from luthier.objectives.chat import Chat
from luthier.objectives.classify import Classify
from luthier.sources.model import Model

TEXTS = ["a first text", "我爱北京", "one more, of another length: it goes on and on", "x"]
TALKS = [["hi", "hello you"], ["who?", "me"], ["再见", "好的"]]


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """One token a byte."""
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(["<end>"])
    return Tokenizer(inner, eos=256, pad=256)


@pytest.fixture(scope="module")
def theirs() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24
    )
    net = transformers.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


@pytest.fixture
def model(letters: Tokenizer, theirs: transformers.LlamaForCausalLM) -> Model:
    net = Llama(vocab=257, width=16, layers=2, heads=4, kv_heads=2, hidden=24, dropout=0.4).build().double()
    net.load_state_dict(import_state(net.config.names({"lm": 0}), theirs.state_dict()))
    return Model(net.train(), letters, named("human_assistant"), "a tiny llama")


def test_the_loss_is_transformers_loss_over_all_tokens_of_all_rows(
    model: Model, theirs: transformers.LlamaForCausalLM, letters: Tokenizer
) -> None:
    nats = tokens = size_bytes = 0.0
    for text in TEXTS:
        ids = torch.tensor([[*letters.encode(text), 256]])
        nats += theirs(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
        size_bytes += len(text.encode()) - 1  # the first byte is not predicted
    rows = [{"text": text} for text in TEXTS]
    figures = measure(model, Causal(), rows, [Perplexity()], micro_tokens=40)
    assert figures["loss"] == pytest.approx(nats / tokens, abs=1e-6)  # theirs is summed in float32
    assert figures["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-6)
    assert held_out_loss(model, Causal(), rows) == pytest.approx(nats / tokens, abs=1e-6)
    # where a row's first character has several bytes, what is left of it decodes to a replacement character of three
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size_bytes, rel=0.1)


def test_measuring_leaves_training_mode_and_gradients_as_they_were(model: Model) -> None:
    held_out_loss(model, Causal(), [{"text": "some text"}])
    assert model.net.training
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_labels_are_scored_as_scikit_learn_scores_the_argmax_of_each_row_alone(model: Model, letters: Tokenizer) -> None:
    model.net.add_head("classify", 3)
    model.net.double()
    torch.nn.init.normal_(model.net.heads["classify"].out.weight)  # type: ignore[union-attr]
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS * 3)]
    figures = measure(model, Classify(labels=("0", "1", "2")), rows, [Accuracy()], micro_tokens=30)
    model.net.eval()
    alone = [model.net.heads["classify"](model.hidden(torch.tensor([[*letters.encode(row["text"]), 256]]))[0, -1]) for row in rows]
    guesses = [int(score.argmax()) for score in alone]
    assert len(set(guesses)) > 1
    assert figures["accuracy"] == pytest.approx(accuracy_score([row["label"] for row in rows], guesses))


def test_texts_are_answers_to_each_conversation_without_its_last_turn(model: Model) -> None:
    asked: list[list[dict]] = []

    def answer(prompts: Sequence[list[dict]]) -> list[str]:
        asked.extend(prompts)
        return ["hello you", " ME \n", "不"]

    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in TALKS]
    figures = measure(model, Chat(), rows, [ExactMatch(), BLEU(), Perplexity()], answer=answer)
    assert asked == [[row["messages"][0]] for row in rows]
    assert figures["exact_match"] == pytest.approx(2 / 3)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert 0 <= figures["bleu"] <= 100


def test_a_measure_that_does_not_fit_the_objective_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="perplexity is for objectives that predict tokens .*classify predicts labels"):
        check_fit(Perplexity(), Classify(), False)
    with pytest.raises(ValueError, match="spearman compares values, and objective chat predicts tokens"):
        check_fit(Spearman(), Chat(), True)
    with pytest.raises(ValueError, match="bleu compares texts"):
        check_fit(BLEU(), Causal(), True)


def test_a_conversation_is_split_before_its_last_answer() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert split(turns) == (turns[:3], "assistant")
    assert split(turns[:1]) == (turns[:1], "")

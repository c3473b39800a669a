"""Heads for tasks on the models that are not plain encoders or decoders: transformers' scores on pairs of stacks; every one is saved and read."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.bart.modeling_bart import shift_tokens_right
from transformers.models.t5.modeling_t5 import T5LayerNorm

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap, sample

from luthier.core.encoder_decoder import again
from luthier.core.names import import_state
from luthier.models.elmo import ELMo
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani
from luthier.models.transformer_xl import TransformerXL
from luthier.models.xlnet import XLNet
from luthier.sources.load import load_model
from luthier.sources.model import Model

KINDS = {"classify": 3, "regress": 1, "choose": 1, "tag": 5, "spans": 2}
END = 1
SMALL_T5 = dict(
    vocab_size=60,
    d_model=32,
    d_kv=6,
    d_ff=48,
    num_layers=2,
    num_heads=4,
    eos_token_id=END,
    decoder_start_token_id=0,
    classifier_dropout=0.1,
)
MARIAN = dict(
    vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, activation_function="relu", scale_embedding=True,
    pad_token_id=0, eos_token_id=END, decoder_start_token_id=0,
)  # fmt: skip
NETS = {
    "t5": T5(vocab=60, width=16, layers=2, heads=2, head_width=8, hidden=24),
    "transformer": Vaswani(vocab=60, width=16, layers=2, decoder_layers=2, heads=2, hidden=24, positions=64),
    "marian": Vaswani(vocab=60, width=16, layers=2, decoder_layers=2, heads=2, hidden=24, positions=64, layout="halves", eps=1e-5),
    "transformer_xl": TransformerXL(vocab=60, width=16, layers=2, heads=2, head_width=8, hidden=24, cuts=(20, 40), divide=2, memory=8),
    "xlnet": XLNet(vocab=60, width=16, layers=2, heads=2, hidden=24),
    "elmo": ELMo(width=8, hidden=12, vectors=4, filters=((1, 4), (2, 4)), highways=1, letters=10),
}


@pytest.fixture(autouse=True)
def float64_norm(monkeypatch):
    """T5's own takes the variance in float32."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def drawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_positions" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 and "weight" in name else 0.0))
    return model.double().eval()


def imported(cls, model, kind: str, labels: int):
    arch = cls.from_config(model.config.to_dict())
    stored = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    net = arch.fit(set(stored)).build()
    del net.heads["lm"]
    net.add_head(kind, labels)
    net.load_state_dict(import_state(arch.names({kind: labels}), stored), strict=False)
    return net.double().eval()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts that end in END, the second one padded on the right."""
    ids = sample(2, 40) % 58 + 2
    mask = torch.ones(2, 40, dtype=torch.bool)
    ids[0, -1] = ids[1, 29] = END
    mask[1, 30:] = False
    return ids.masked_fill(~mask, 0), mask


def ends(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[range(len(mask)), mask.sum(1) - 1]


@torch.no_grad()
def test_sentences_read_the_end_token_in_t5s_decoder():
    model = drawn(hf.T5ForSequenceClassification(hf.T5Config(**SMALL_T5, num_labels=3)))
    net, (ids, mask) = imported(T5, model, "classify", 3), texts()
    want = model(ids, attention_mask=mask.long()).logits
    hidden = net.hidden(ids, mask, stack="decoder")
    assert gap(net.heads["classify"](ends(hidden, mask)), want) < FLOOR
    assert net.pool == "last" and net.heads["classify"].dropout.p == net.heads["classify"].pooler.dropout.p == 0.1
    packed = net.hidden(ids[mask][None], lengths=(40, 30), stack="decoder")[0]
    assert gap(net.heads["classify"](packed[[39, 69]]), want) < FLOOR
    left = torch.cat([ids[1:, 30:], ids[1:, :30]], 1)  # its padding on the left
    assert gap(net.heads["classify"](net.hidden(left, left > 0, stack="decoder")[:, -1]), want[1:]) < FLOOR


@torch.no_grad()
def test_spans_are_read_in_t5s_decoder():
    model = drawn(hf.T5ForQuestionAnswering(hf.T5Config(**SMALL_T5, num_labels=2)))
    net, (ids, mask) = imported(T5, model, "spans", 2), texts()
    out = model(ids, attention_mask=mask.long())
    scores = net.heads["spans"](net.hidden(ids, mask, stack="decoder"))
    assert gap(scores[mask], torch.stack([out.start_logits, out.end_logits], -1)[mask]) < FLOOR


THEIRS = {"classify": hf.T5ForSequenceClassification, "spans": hf.T5ForQuestionAnswering, "tag": hf.T5ForTokenClassification}


@pytest.mark.parametrize("kind", THEIRS)
@torch.no_grad()
def test_what_we_save_gives_transformers_our_scores(kind, tmp_path):
    """Tokens are read in the encoder, which is all that transformers' class has."""
    torch.manual_seed(0)
    net = NETS["t5"].build().double().eval()
    net.add_head(kind, KINDS[kind])
    Model(net, source="t5").save(tmp_path)
    model = THEIRS[kind].from_pretrained(tmp_path, dtype=torch.float64).eval()
    model.config.eos_token_id = END
    ids, mask = texts()
    out, states = model(ids, attention_mask=mask.long()), net.hidden(ids, mask, stack="encoder" if kind == "tag" else "decoder")
    if kind == "classify":
        assert gap(net.heads[kind](ends(states, mask)), out.logits) < FLOOR
        return
    want = out.logits if kind == "tag" else torch.stack([out.start_logits, out.end_logits], -1)
    assert gap(net.heads[kind](states)[mask], want[mask]) < FLOOR


def test_an_encoder_alone_is_refused_in_words():
    model = hf.T5ForTokenClassification(hf.T5Config(**SMALL_T5))
    known = {NETS["t5"].aliases(name) for name in model.state_dict()} - {None}
    with pytest.raises(ValueError, match="holds T5's encoder alone"):
        NETS["t5"].fit(known)  # type: ignore[arg-type]


@torch.no_grad()
def test_sentences_of_a_transformer_are_read_as_barts_class_reads_them():
    """BART's classifier around Marian's stacks."""
    model = drawn(hf.MarianMTModel(hf.MarianConfig(**MARIAN)))
    bart = {**MARIAN, "encoder_layers": 1, "decoder_layers": 1, "num_labels": 3, "classifier_dropout": 0.0}
    judge = drawn(hf.BartForSequenceClassification(hf.BartConfig(**bart)))
    judge.model = model.model
    net, (ids, mask) = imported(Vaswani, judge_of(model, judge), "classify", 3), texts()
    want = judge(ids, attention_mask=mask.long(), decoder_input_ids=shift_tokens_right(ids, 0, 0)).logits
    table = net.embed.position.table  # theirs is a table of float32
    assert gap(table, model.model.decoder.embed_positions.weight[: len(table)]) < 1e-6
    net.embed.position.table = net.encoder.embed.position.table = model.model.decoder.embed_positions.weight.double()
    assert gap(net.heads["classify"](ends(net.hidden(ids, mask, stack="decoder"), mask)), want) < FLOOR


def judge_of(model, judge):
    model.classification_head = judge.classification_head
    return model


def test_the_text_said_again_begins_with_the_start_token():
    ids = torch.tensor([[5, 6, 7, 8]])
    assert again(ids, 9).tolist() == [[9, 5, 6, 7]]
    assert again(ids, 9, lengths=(1, 3)).tolist() == [[9, 9, 6, 7]]
    assert again(torch.tensor([[0, 0, 7, 8]]), 9, torch.tensor([[0, 0, 1, 1]])).tolist()[0][2:] == [9, 7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_head_is_saved_and_read_again(name, kind, tmp_path):
    torch.manual_seed(0)
    net = NETS[name].build().eval()
    net.add_head(kind, KINDS[kind])
    nn.init.normal_(net.heads[kind].out.weight)
    Model(net, source=name).save(tmp_path)
    again_ = load_model(str(tmp_path)).net
    ids = torch.randint(1, 60, (1, 9, 10) if name == "elmo" else (1, 9))
    stack = {"stack": "encoder" if kind == "tag" else "decoder"} if hasattr(net, "encoder") else {}
    scores = [n.heads[kind](n.hidden(ids, **stack)) for n in (net, again_)]
    assert scores[0].shape == (1, 9, KINDS[kind]) and torch.equal(*scores)

"""Live transformers models of many kinds: alone, packed and left-padded they give the logits that transformers gives."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from luthier.core.cache import Cache
from luthier.sources.load import load_model
from stored import disturbed

WIDE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = WIDE | {"num_key_value_heads": 2}
SHORT: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DISTIL: dict[str, Any] = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
DECODERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8)),  # a soft cap behind the head
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**WIDE)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED, pad_token_id=0)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHORT)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**SHORT, rotary_dim=4)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**WIDE)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                     word_embed_proj_dim=32)
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=2)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=4.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED)),
}  # fmt: skip
ENCODERS = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**WIDE)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**WIDE)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(**DISTIL)),
    "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**WIDE, embedding_size=16)),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**WIDE, embedding_size=16)),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**WIDE, pad_token_id=0, cls_token_id=1, sep_token_id=2)),
}
LENGTHS = (5, 9, 3, 7)
LABELS: dict[str, Any] = {
    "bert sentence": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**WIDE, num_labels=3)), "classify"),
    "bert tokens": (lambda: hf.BertForTokenClassification(hf.BertConfig(**WIDE, num_labels=3)), "tag"),
    "roberta sentence": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**WIDE, num_labels=3)), "classify"),
    "distilbert sentence": (lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTIL, num_labels=3)), "classify"),
    "llama sentence": (lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**GROUPED, num_labels=3, pad_token_id=0)), "classify"),
}


def made(build: Any) -> Any:
    torch.manual_seed(0)
    model = disturbed(build())
    return model if isinstance(model, hf.MixtralForCausalLM) else model.double()  # grouped products of experts have no float64


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 97, (1, length), generator=generator) for length in LENGTHS]


@torch.no_grad()
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_alone_packed_and_left_padded_give_their_logits(kind: str):
    theirs = made((DECODERS | ENCODERS)[kind])
    net = load_model(theirs).net
    assert net.causal == (kind in DECODERS)
    wanted = [theirs(input_ids=ids).logits for ids in documents()]
    floor = 1e-5 if kind == "mixtral" else 1e-7 if kind in ("gptj",) else 1e-12  # GPT-J rotates in float32
    for ids, logits in zip(documents(), wanted, strict=True):
        assert (net(ids) - logits).abs().max() <= floor
    packed = net(torch.cat(documents(), 1), lengths=LENGTHS).split(LENGTHS, 1)
    assert max((a - b).abs().max() for a, b in zip(packed, wanted, strict=True)) < floor
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.bool)
    for row, document in enumerate(documents()):
        ids[row, 9 - document.shape[1] :], mask[row, 9 - document.shape[1] :] = document[0], True
    padded = net(ids, mask)
    assert max((padded[i, 9 - logits.shape[1] :] - logits[0]).abs().max() for i, logits in enumerate(wanted)) < floor


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_gradients_flow_through_packing(kind: str):
    theirs = made((DECODERS | ENCODERS)[kind])
    reference = copy.deepcopy(theirs)
    net = load_model(theirs).net
    weight = torch.randn(sum(LENGTHS), 97, dtype=torch.float64)
    (net(torch.cat(documents(), 1), lengths=LENGTHS)[0] * weight).sum().backward()
    (torch.cat([reference(input_ids=ids).logits[0] for ids in documents()]) * weight).sum().backward()
    for (name, given), wanted in zip(theirs.named_parameters(), reference.parameters(), strict=True):
        if wanted.grad is not None:
            assert torch.allclose(given.grad, wanted.grad, atol=1e-9), name


@torch.no_grad()
@pytest.mark.parametrize("kind", LABELS)
def test_label_heads_give_their_logits(kind: str):
    build, head = LABELS[kind]
    theirs = made(build)
    net = load_model(theirs).net
    assert list(net.heads) == [head]
    for ids in documents():
        states = net.hidden(ids)
        state = states if head == "tag" else states[:, -1 if net.pool == "last" else 0]
        assert (net.heads[head](state) - theirs(input_ids=ids).logits).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)),
        lambda: hf.BartForConditionalGeneration(hf.BartConfig(
            vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48,
        )),
    ],
    ids=["t5", "bart"],
)  # fmt: skip
def test_encoder_decoders_take_two_texts(build: Any):
    theirs = made(build)
    model = load_model(theirs)
    ids, other = documents()[0], documents()[1]
    assert (model.logits(ids, decoder_ids=other) - theirs(input_ids=ids, decoder_input_ids=other).logits).abs().max() < 1e-12
    with pytest.raises(ValueError, match="give ids and decoder_ids"):
        model.logits(ids)
    targets = [part + 1 for part in documents()[::-1]]
    packed = model.logits(
        torch.cat(documents(), 1),
        lengths=LENGTHS,
        decoder_ids=torch.cat(targets, 1),
        decoder_lengths=tuple(part.shape[1] for part in targets),
    )
    alone = [model.logits(source, decoder_ids=target) for source, target in zip(documents(), targets, strict=True)]
    assert (packed - torch.cat(alone, 1)).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "bloom", "opt"])
def test_prompts_see_themselves_or_are_refused_in_words(kind: str):
    net = load_model(made(DECODERS[kind])).net
    ids, prompts = torch.cat(documents(), 1), (3, 4, 2, 5)
    if kind in ("bloom", "opt"):
        with pytest.raises(ValueError, match="does not take a mask under which a prompt sees itself"):
            net.hidden(ids, lengths=LENGTHS, prompts=prompts)
        return
    before = net.hidden(ids, lengths=LENGTHS, prompts=prompts)[0]
    for at, first, moved in [(5 + 3, 5, True), (5 + 4, 5, False), (5 + 4, 5 + 3, False), (5 + 4, 5 + 4, True), (4, 5, False)]:
        changed = ids.clone()
        changed[0, at] = (changed[0, at] + 1) % 97
        after = net.hidden(changed, lengths=LENGTHS, prompts=prompts)[0]
        assert bool((after[first] - before[first]).abs().max() > 1e-9) == moved


@torch.no_grad()
def test_an_added_head_reads_the_states():
    net = load_model(made(DECODERS["llama"])).net
    net.add_head("classify", 4)
    assert net.heads["classify"](net.hidden(documents()[0])[:, -1]).shape == (1, 4)
    with pytest.raises(ValueError, match="no head called 'rank'"):
        net.add_head("rank", 2)


def test_parameters_have_one_name_and_the_head_is_the_model_s_own():
    theirs = made(DECODERS["gpt2"])
    net: Any = load_model(theirs).net
    assert [name for name, _ in net.named_parameters()] == [f"module.{name}" for name, _ in theirs.named_parameters()]
    assert net.heads["lm"].out is theirs.lm_head
    assert not net.training


@torch.no_grad()
def test_what_it_does_not_take_is_refused_in_words():
    net = load_model(made(DECODERS["bloom"])).net
    ids = documents()[0]
    with pytest.raises(ValueError, match="does not take a cache here"):
        net.hidden(ids, cache=Cache(2))
    with pytest.raises(ValueError, match="finds its positions by itself"):
        net.hidden(ids, positions=torch.arange(5)[None])
    with pytest.raises(ValueError, match=r"need ids of shape \(1, 12\)"):
        net.hidden(ids, lengths=(5, 7))
    with pytest.raises(ValueError, match="give their lengths too"):
        net.hidden(ids, prompts=(2,))


def test_a_head_that_does_more_is_refused():
    class Doubled(hf.LlamaForCausalLM):
        def forward(self, *args: Any, **options: Any) -> Any:
            out = super().forward(*args, **options)
            out.logits = out.logits * 2
            return out

    with pytest.raises(ValueError, match="the head of Doubled does more than Luthier knows"):
        load_model(disturbed(Doubled(hf.LlamaConfig(**GROUPED))))


def test_the_tokenizer_comes_from_the_folder_or_beside_the_model(llama_folder: Any):
    theirs = hf.AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(llama_folder)
    for model in (load_model(theirs), load_model((theirs, tokenizer))):
        assert model.tokenizer is not None and model.template is not None
        assert model.tokenizer.encode("Hello 12") == tokenizer("Hello 12")["input_ids"]
        assert model.tokenizer.eos == tokenizer.eos_token_id


@torch.no_grad()
def test_saving_gives_transformers_folder_back(tmp_path: Any):
    theirs = made(DECODERS["opt"]).float()
    load_model(theirs).save(tmp_path / "m")
    back = hf.OPTForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(back(documents()[0]).logits, theirs(documents()[0]).logits)
    assert not [path for path in tmp_path.iterdir() if path.name != "m"]


def test_dropout_is_off_while_it_is_measured_and_on_again_after():
    theirs = made(lambda: hf.BertForMaskedLM(hf.BertConfig(**WIDE, hidden_dropout_prob=0.9)))
    theirs.train()
    net = load_model(theirs).net
    assert not net.causal
    assert not any(isinstance(each, nn.Dropout) and each.training for each in net.modules())  # load_model gives evaluation mode

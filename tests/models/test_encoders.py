"""BERT and its descendants: heads of pre-training, whole folders both ways, positions, sharing, sizes, refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from families.encoders import CLASSES, DROPOUT, FACTORISED, HEADS, TASKS
from families.sizes import SMALL
from oracles import FLOOR, KINDS, dropped, gap, ours, reference, sample

from luthier.anatomy.anatomy import anatomy
from luthier.models.albert import ALBERT
from luthier.models.bert import BERT
from luthier.models.distilbert import DistilBERT
from luthier.models.electra import ELECTRA
from luthier.models.ernie import ERNIE
from luthier.models.roberta import RoBERTa
from luthier.sources.load import load_model
from luthier.sources.model import Model

Folder = Path


def answers(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Every kind of logits that their model gives."""
    keys = ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits", "start_logits", "end_logits")
    out = model(ids)
    return [out[key] for key in keys if key in out and out[key] is not None]


def our_answers(model: Model, ids: torch.Tensor) -> list[torch.Tensor]:
    hidden, heads, found = model.net.hidden(ids), model.net.heads, []
    if "lm" in heads:
        found.append(heads["lm"](hidden))
    for kind in sorted(heads.keys() - {"lm"}):
        if kind in ("tag", "replaced"):
            found.append(heads[kind](hidden).squeeze(-1))
        elif kind == "spans":
            found += heads[kind](hidden).unbind(-1)
        else:
            found.append(heads[kind](hidden[:, 0]))
    return found


def save_theirs(kind: str, cls: Any, folder: Folder, **changes: Any) -> nn.Module:
    model = reference(kind, cls, **changes)
    model.save_pretrained(folder)
    return model


PRETRAINING = [
    ("bert", hf.BertForPreTraining, {"lm", "next_sentence"}),
    ("bert", hf.BertForNextSentencePrediction, {"next_sentence"}),
    ("ernie", hf.ErnieForPreTraining, {"lm", "next_sentence"}),
    ("ernie_tasks", hf.ErnieForPreTraining, {"lm", "next_sentence"}),
    ("albert", hf.AlbertForPreTraining, {"lm", "sentence_order"}),
    ("electra", hf.ElectraForPreTraining, {"replaced"}),
    ("electra", hf.ElectraForMaskedLM, {"lm"}),
    ("roberta", hf.RobertaForMaskedLM, {"lm"}),
    ("distilbert", hf.DistilBertForMaskedLM, {"lm"}),
]
LABELLED = [
    (kind, getattr(hf, stem + end), {task})
    for kind, stem in CLASSES.items() for task, (_, end) in TASKS.items() if task not in ("regress", "choose")
]  # fmt: skip


@pytest.mark.parametrize(("kind", "cls", "heads"), PRETRAINING + LABELLED)
@torch.no_grad()
def test_a_folder_is_read_with_all_its_heads_and_written_so_that_transformers_reads_it(kind, cls, heads, tmp_path):
    theirs = save_theirs(kind, cls, tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", "float64")
    assert model.net.heads.keys() == heads
    want = answers(theirs, sample(2, 50))
    assert len(want) >= len(heads)
    for p in model.net.parameters():
        p.mul_(1.01)
    changed = our_answers(model, sample(2, 50))
    model.save(tmp_path / "ours")
    again, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=torch.float64)
    assert type(again).__name__ == json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0]
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for p in model.net.parameters():
        p.div_(1.01)
    for mine, other in zip(our_answers(model, sample(2, 50)), want, strict=True):
        assert gap(mine, other) < FLOOR
    for mine, other in zip(changed, answers(again.eval(), sample(2, 50)), strict=True):
        assert gap(mine, other) < FLOOR


@pytest.mark.parametrize("stem", ["XLMRoberta", "Camembert"])
@torch.no_grad()
def test_the_same_parts_under_other_names(stem, tmp_path):
    config = getattr(hf, f"{stem}Config")(**SMALL, type_vocab_size=1)
    theirs = getattr(hf, f"{stem}ForMaskedLM")(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [f"{stem}ForMaskedLM"]
    assert gap(model.logits(sample()), theirs(sample()).logits) < FLOOR


def test_a_head_of_pre_training_put_on_later_comes_back_from_a_folder(tmp_path):
    for kind in ("bert", "roberta", "distilbert"):
        net = ours(kind, reference(kind))
        net.add_head("next_sentence", 2)
        net.add_head("sentence_order", 2)
        Model(net).save(tmp_path / kind)
        again = load_model(tmp_path / kind)
        assert again.net.heads.keys() == {"lm", "next_sentence", "sentence_order"}
        for mine, other in zip(our_answers(again, sample(1, 9)), our_answers(Model(net.eval()), sample(1, 9)), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_classifier_trained_on_a_language_model_keeps_both_heads_in_its_folder(kind, tmp_path):
    net = ours(kind, reference(kind))
    net.add_head("classify", 3)
    Model(net).save(tmp_path)
    again = load_model(tmp_path)
    assert again.net.heads.keys() == {"lm", "classify"} and torch.equal(again.logits(sample(1, 9)), net.eval()(sample(1, 9)))


def test_heads_of_pre_training_that_came_with_the_model_are_no_tasks_and_those_put_on_are():
    net = BERT(vocab=60, width=32, layers=1, heads=4, hidden=64, next_sentence=True).build()
    assert not anatomy(net).task_heads()
    net.add_head("sentence_order", 2)
    net.add_head("classify", 3)
    assert anatomy(net).task_heads().keys() == {"sentence_order", "classify"}


def test_old_files_say_gamma_and_beta_leave_prefixes_out_and_hold_buffers(tmp_path):
    save_theirs("bert", hf.BertModel, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for name, t in tensors.items()
    }
    assert old.keys() != tensors.keys() and not any(name.startswith("bert.") for name in old)
    save_file(old | {"embeddings.position_ids": torch.arange(220)[None]}, tmp_path / "model.safetensors")
    net = load_model(tmp_path, "float64").net
    assert not net.heads and torch.equal(net.blocks[0].ffn_norm.weight, tensors["encoder.layer.0.output.LayerNorm.weight"])


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in CLASSES if kind != "albert" for head in TASKS])
def test_heads_drop_where_transformers_heads_do(kind, head, monkeypatch):
    labels, end = TASKS[head]
    rates = {"classifier_dropout": 0.4, "seq_classif_dropout": 0.4, "qa_dropout": 0.5, "summary_last_dropout": 0.6}
    model = reference(kind, getattr(hf, CLASSES[kind] + end), num_labels=labels, **rates, **DROPOUT[kind]).train()
    net = ours(kind, model, {head: labels}).train()
    seen, ids = dropped(monkeypatch), sample(1, 20)
    model(ids[None] if head == "choose" else ids)
    want, seen[:] = list(seen), []
    hidden = net.hidden(ids)
    net.heads[head](hidden if head in ("tag", "spans") else hidden[:, 0])
    assert seen == want


def spoil(kind: str, head: str) -> dict[str, Any]:
    tanh = nn.functional.gelu if kind == "distilbert" else torch.relu
    found = {
        "no pooler": lambda module: setattr(module, "pooler", nn.Identity()),
        "another activation": lambda module: setattr(module.pooler, "act", tanh),
        "pooler without its bias": lambda module: nn.init.zeros_(module.pooler.dense.bias),
    }
    return found if head in ("classify", "choose", "regress") else {}


SPOILT = [(mutant, *row) for row in HEADS for mutant in spoil(row[0], row[1])]


@pytest.mark.parametrize(("mutant", "kind", "head", "labels", "cls"), SPOILT)
@torch.no_grad()
def test_the_parity_of_heads_catches(mutant, kind, head, labels, cls):
    model = reference(kind, cls, num_labels=labels)
    net = ours(kind, model, {head: labels})
    ids = sample(2, 60)
    want = model(ids[None]).logits[0, :, None] if head == "choose" else model(ids).logits
    state = net.hidden(ids)[:, 0]
    assert gap(net.heads[head](state), want) < FLOOR
    spoil(kind, head)[mutant](net.heads[head])
    assert gap(net.heads[head](state), want) > 10 * FLOOR


# Positions


def test_robertas_positions_begin_behind_the_padding_and_skip_it():
    net = ours("roberta", reference("roberta"))
    seen = []
    net.embed.position.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].tolist()))
    net(torch.tensor([[0, 7, 8, 2, 1, 1]]))
    net(torch.tensor([[1, 1, 0, 7, 8, 2]]))
    net(torch.tensor([[0, 7, 1, 8, 2, 1, 0, 9]]), lengths=(6, 2))
    net(torch.tensor([[0, 0, 0, 7]]), torch.tensor([[False, False, True, True]]))
    assert [row[0] for row in seen[:3]] == [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 4, 5], [2, 3, 1, 4, 5, 1, 2, 3]]
    assert seen[3][0][2:] == [2, 3]


@pytest.mark.parametrize("kind", ["roberta", "albert", "distilbert", "ernie", "electra"])
@torch.no_grad()
def test_padding_gives_transformers_logits_and_so_do_segments(kind):
    model = reference(kind)
    net = ours(kind, model)
    pad = model.config.pad_token_id
    ids, mask = sample(2, 200), torch.ones(2, 200, dtype=torch.bool)
    mask[1, 150:] = False
    ids[1, 150:] = pad
    types = torch.arange(200).expand(2, 200) // 90 % 2
    theirs = {"token_type_ids": types} if kind not in ("roberta", "distilbert") else {}
    assert gap(net(ids, mask, types=types)[mask], model(ids, attention_mask=mask.long(), **theirs).logits[mask]) < FLOOR


@torch.no_grad()
def test_a_padding_token_inside_a_text_is_read_as_transformers_reads_it():
    model = reference("roberta")
    ids = sample(2, 60)
    ids[:, 20:24] = 1
    assert gap(ours("roberta", model)(ids), model(ids).logits) < FLOOR


@torch.no_grad()
def test_tasks_have_a_vector_each():
    model = reference("ernie_tasks")
    tasks = torch.arange(60).expand(2, 60) % 3
    assert gap(ours("ernie_tasks", model)(sample(2, 60), tasks=tasks), model(sample(2, 60), task_type_ids=tasks).logits) < FLOOR


def test_a_text_has_as_many_positions_as_the_paper_says():
    with torch.device("meta"):
        net = RoBERTa().build()
    assert net.embed.positions == 512 and net.embed.position.num_embeddings == 514
    tiny = RoBERTa(vocab=60, width=8, layers=1, heads=2, hidden=8, positions=10).build()
    tiny(sample(1, 10))
    with pytest.raises(ValueError, match="11 tokens is beyond the model's 10 positions"):
        tiny(sample(1, 11))


# Sharing


@pytest.mark.parametrize("share", ["attention", "ffn"])
@torch.no_grad()
def test_layers_that_share_a_part_are_an_unshared_model_with_that_part_repeated(share, tmp_path):
    arch = ALBERT(vocab=60, embed_width=16, width=32, layers=3, heads=4, hidden=64, positions=220, share=share)
    net = arch.build().eval()
    a, b = net.blocks[0], net.blocks[2]
    assert (a.attn is b.attn, a.attn_norm is b.attn_norm) == (share == "attention",) * 2
    assert (a.ffn is b.ffn, a.ffn_norm is b.ffn_norm) == (share == "ffn",) * 2
    model = Model(net)
    model.save(tmp_path)
    theirs = hf.AlbertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert theirs.config.num_hidden_groups == 3
    assert gap(net(sample()), theirs(sample()).logits) < FLOOR
    again = load_model(tmp_path)
    assert again.net.config.share == share and torch.equal(again.logits(sample()), net(sample()))
    assert sum(p.numel() for p in again.net.parameters()) == sum(p.numel() for p in net.parameters())
    assert len(model.anatomy.find("q")) == (1 if share == "attention" else 3) and len(model.anatomy.find("up")) == (
        1 if share == "ffn" else 3
    )


@torch.no_grad()
def test_albert_drops_the_feed_forwards_output_as_the_paper_s_code_does_though_transformers_does_not():
    net = ours("albert", reference("albert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0)).train()
    places: list[int] = []
    for part in net.modules():
        if isinstance(part, nn.Dropout) and part.p:
            part.register_forward_hook(lambda module, inputs, output: places.append(inputs[0].shape[-1]))
    net(sample(1, 9))
    assert places == [16, *[32, 32] * 3]


# Sizes

MILLION = 1_000_000
COUNTS = {
    (BERT, "bert-base-uncased", "next_sentence"): 110_106_428,
    (BERT, "bert-large-uncased", "next_sentence"): 336_226_108,
    (BERT, "bert-base-cased", "bare"): 108_310_272,
    (BERT, "bert-base-chinese", "bare"): 102_267_648,
    (BERT, "chinese-bert-wwm-ext", "bare"): 102_267_648,
    (BERT, "chinese-roberta-wwm-ext", "bare"): 102_267_648,
    (RoBERTa, "roberta-base", ""): 124_697_433,
    (RoBERTa, "roberta-large", ""): 355_412_057,
    (ERNIE, "ernie-1.0-base-zh", "bare"): 99_866_112,
    (ALBERT, "albert-base-v1", "bare"): 11_683_584,
    (ALBERT, "albert-base-v2", "bare"): 11_683_584,
    (ALBERT, "albert-large-v2", "bare"): 17_683_968,
    (ALBERT, "albert-xlarge-v2", "bare"): 58_724_864,
    (ALBERT, "albert-xxlarge-v2", "bare"): 222_595_584,
    (DistilBERT, "distilbert-base-uncased", "bare"): 66_362_880,
    (DistilBERT, "distilbert-base-uncased", ""): 66_985_530,
}


def count(arch: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in arch.build().parameters())


@pytest.mark.parametrize(("arch", "preset", "form"), COUNTS)
def test_presets_have_the_published_number_of_parameters(arch, preset, form):
    heads = {"bare": {"lm": False}, "next_sentence": {"next_sentence": True}, "": {}}[form]
    assert count(arch(**arch.presets[preset], **heads)) == COUNTS[arch, preset, form]


@pytest.mark.parametrize(("fields", "millions"), [({}, 12), ({"share": "attention"}, 64), ({"share": "ffn"}, 38), ({"groups": 12}, 89)])
def test_sharing_saves_what_table_4_of_the_paper_says(fields, millions):
    assert abs(count(ALBERT(lm=False, **fields)) - millions * MILLION) < 1.1 * MILLION


PUBLISHED: list[tuple[Any, Any, Any]] = [(BERT, hf.BertConfig, hf.BertForMaskedLM), (ERNIE, hf.ErnieConfig, hf.ErnieForMaskedLM)]
PUBLISHED += [(ELECTRA, hf.ElectraConfig, hf.ElectraForPreTraining), (RoBERTa, hf.RobertaConfig, hf.RobertaForMaskedLM)]


@pytest.mark.parametrize(("arch", "preset", "config", "cls"), [(a, p, c, k) for a, c, k in PUBLISHED for p in a.presets])
def test_every_size_counts_as_transformers_class_of_that_configuration(arch, preset, config, cls):
    ours = arch(**arch.presets[preset])
    cls = hf.ElectraForMaskedLM if arch is ELECTRA and ours.lm else hf.BertModel if arch is BERT and not ours.lm else cls
    with torch.device("meta"):
        theirs = cls(config(**ours.to_config()))
    pooler = 0 if cls in (hf.BertModel, hf.ElectraForPreTraining) or not ours.pooler else ours.width * (ours.width + 1)
    assert count(ours) == sum(p.numel() for p in theirs.parameters()) + pooler


# Refusals

REFUSED = [
    ("bert", {"position_embedding_type": "relative_key"}, "relative positions"),
    ("bert", {"is_decoder": True}, "a decoder"),
    ("ernie", {"add_cross_attention": True}, "cross-attention"),
    ("roberta", {"tie_word_embeddings": False}, "untied"),
    ("roberta", {"pad_token_id": None}, "pad_token_id=None"),
    ("distilbert", {"tie_word_embeddings": False}, "untied"),
    ("distilbert", {"activation": "mish"}, "activation='mish'"),
    ("albert", {"hidden_act": "mish"}, "hidden_act='mish'"),
    ("albert", {"num_hidden_groups": 9}, "groups=9"),
    ("electra", {"summary_type": "mean"}, "summary"),
    ("unilm", {"rel_pos_bins": 32}, "rel_pos_bins=32"),
    ("bert", {"pruned_heads": {"1": [0]}}, "pruned"),
]


@pytest.mark.parametrize(("kind", "setting", "sentence"), REFUSED)
def test_what_a_configuration_asks_for_and_we_lack_is_refused_by_name(kind, setting, sentence):
    arch, config, _ = KINDS[kind]
    with pytest.raises(ValueError, match=sentence):
        arch.from_config(config.to_dict() | setting)


def test_sizes_that_no_model_has_are_refused():
    with pytest.raises(ValueError, match="width=30 must divide"):
        RoBERTa(width=30, heads=4)
    with pytest.raises(ValueError, match="share='half'"):
        ALBERT(share="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps 1e-12"):
        DistilBERT(eps=1e-5).saved()
    assert ALBERT.from_config(hf.AlbertConfig(**FACTORISED).to_dict()).embed_width == 16

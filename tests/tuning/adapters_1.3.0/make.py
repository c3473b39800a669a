"""Writes the folders beside this file, with adapters 1.3.0 on transformers 4.57.6: `python make.py`.

Each case is the folder (or folders) that the library saves, pickles as by default, with random weights, on the BERT and GPT-2 of
../adapters_1.3.0.safetensors and on a T5; expected.safetensors holds the ids, each case's logits, and T5's weights.
"""

from pathlib import Path

import adapters
import torch
from adapters import BertAdapterModel, Fuse, PrefixTuningConfig
from adapters.configuration import CompacterConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig, SeqBnInvConfig
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

HERE = Path(__file__).parent
KNOWN = load_file(HERE.parent / "adapters_1.3.0.safetensors")
PREFIX = {"prefix_length": 3, "bottleneck_size": 4}
CASES = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer": SeqBnConfig(reduction_factor=4, leave_out=[0]),
    "parallel": ParBnConfig(reduction_factor=4, scaling=2.0),
    "invertible": SeqBnInvConfig(reduction_factor=4),
    "compacter": CompacterConfig(reduction_factor=4, phm_dim=2, phm_init_range=0.1),
    "prefix": PrefixTuningConfig(**PREFIX),
    "flat": PrefixTuningConfig(**PREFIX, flat=True),
}


def base(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        net = BertForMaskedLM(
            BertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16
            )
        )
    elif kind == "gpt2":
        net = GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=16, bos_token_id=1, eos_token_id=2)
        )
    else:
        net = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    weights = {name.removeprefix(f"{kind}/base/"): value for name, value in KNOWN.items() if name.startswith(f"{kind}/base/")}
    net.load_state_dict(weights, strict=False)
    net.set_attn_implementation("eager")  # under sdpa a prefix is masked wrongly
    adapters.init(net)
    return net.eval()


def shaken(net: torch.nn.Module, *names: str) -> torch.nn.Module:
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if any(f".{each}." in name for each in names):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return net


def said(net: torch.nn.Module, kind: str, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(input_ids=ids, **({"decoder_input_ids": ids} if kind == "t5" else {})).logits


@torch.no_grad()
def undone(net: torch.nn.Module, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """With the inverse before the vocabulary's matrix, where the library's own language-model heads have it; transformers' classes leave it out."""
    states = net.base_model(input_ids=ids)[0]
    states = net.cls.predictions.transform(states) if kind == "bert" else states
    states = net.base_model.invertible_adapters["one"](states, rev=True)
    return net.cls.predictions.decoder(states) if kind == "bert" else net.lm_head(states)


def main() -> None:
    ids = KNOWN["ids"]
    expected = {"ids": ids} | {
        f"t5/base/{name}": value.clone()
        for name, value in base("t5").state_dict().items()
        if "embed_tokens" not in name and "lm_head" not in name
    }
    for kind in ("bert", "gpt2", "t5"):
        for case, config in CASES.items():
            if kind == "t5" and case not in ("houlsby", "prefix"):
                continue
            net = base(kind)
            net.add_adapter("one", config=config)
            net.set_active_adapters("one")
            shaken(net, "one")
            net.save_adapter(str(HERE / f"{kind}-{case}"), "one", with_head=False)
            expected[f"{kind}/{case}"] = undone(net, kind, ids) if case == "invertible" else said(net, kind, ids)
    net = base("bert")
    (HERE / "bert-fusion").mkdir(exist_ok=True)
    for name in ("a", "b"):
        net.add_adapter(name, config=SeqBnConfig(reduction_factor=4))
    net.add_adapter_fusion(["a", "b"])
    net.active_adapters = Fuse("a", "b")
    shaken(net, "a", "b", "a,b")
    for name in ("a", "b"):
        net.save_adapter(str(HERE / "bert-fusion" / name), name, with_head=False)
    net.save_adapter_fusion(str(HERE / "bert-fusion" / "a,b"), "a,b")
    expected["bert/fusion"] = said(net, "bert", ids)
    for head, labels in (("classification", 3), ("tagging", 4), ("qa", 2)):
        net = BertAdapterModel(base("bert").config)
        net.bert.load_state_dict(
            {
                name.removeprefix("bert."): value
                for name, value in base("bert").state_dict().items()
                if ".embeddings." in name or ".encoder." in name
            },
            strict=False,
        )
        net.set_attn_implementation("eager")
        net.add_adapter("one", config=SeqBnConfig(reduction_factor=4))
        getattr(net, f"add_{head}_head")("one", num_labels=labels)
        net.active_adapters = "one"
        shaken(net.eval(), "one")
        net.save_adapter(str(HERE / f"bert-head-{head}"), "one", with_head=True)
        with torch.no_grad():
            out = net(input_ids=ids)
        expected[f"bert/head-{head}"] = torch.stack([out.start_logits, out.end_logits], -1) if head == "qa" else out.logits
    save_file({name: value.contiguous() for name, value in expected.items()}, HERE / "expected.safetensors")


main()

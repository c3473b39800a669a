"""Makes adapters_unions.safetensors: what adapters 1.3.0 (transformers 4.57.6) makes of MAM and UniPELT on a BERT of width 16.

python tests/tuning/adapters_unions.py     in an environment that has that library
"""

from pathlib import Path

import adapters
import torch
from adapters.configuration import MAMConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def noise(parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn_like(parameter))


def main() -> None:
    prefix = PrefixTuningConfig(prefix_length=3, bottleneck_size=5)
    cases = {
        "mam": MAMConfig(prefix, ParBnConfig(reduction_factor=4)),
        "unipelt": UniPELTConfig(prefix, SeqBnConfig(reduction_factor=4)),
    }
    tensors = {"ids": IDS}
    for name, config in cases.items():
        torch.manual_seed(7)
        model = BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=16, attn_implementation="eager")).eval()
        noise(model.parameters())
        tensors |= {f"{name}/base/{key}": value.detach().clone() for key, value in model.state_dict().items() if "decoder" not in key}
        with torch.no_grad():
            tensors[f"{name}/base.out"] = model(IDS).logits
        adapters.init(model)
        model.add_adapter("one", config)
        model.set_active_adapters("one")
        own = {key: parameter for key, parameter in model.named_parameters() if ".one." in key}
        noise(own.values())
        unique = {id(p): (key, p) for key, p in reversed(own.items())}  # a prefix stands under two names
        tensors |= {f"{name}/{key}": parameter.detach().clone() for key, parameter in unique.values()}
        with torch.no_grad():
            tensors[f"{name}/out"] = model(IDS).logits
    large = BertForMaskedLM(BertConfig())
    adapters.init(large)
    large.add_adapter("one", "unipelt")
    count = sum(p.numel() for p in {id(p): p for key, p in large.named_parameters() if ".one." in key}.values())
    tensors["unipelt/count of BERT-base"] = torch.tensor([count])
    save_file({key: value.contiguous() for key, value in tensors.items()}, Path(__file__).with_suffix(".safetensors"))


if __name__ == "__main__":
    main()

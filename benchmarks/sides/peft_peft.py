"""The same methods as peft's users set them up: SDPA, no cache, no gradient checkpointing, right-padded batches; start values are given.

Prompt tuning, P-tuning and prefixes are built anew and filled by hand: peft refuses to train those that it has read from a folder.
"""

import argparse
from collections.abc import Callable
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.sides.sft_transformers import rounds

CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
LORA = CAUSAL | {
    "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
}  # fmt: skip
ADALORA = {"init_r": 12, "target_r": 8, "lora_alpha": 16, "target_modules": LORA["target_modules"], "orth_reg_weight": 0.1}
CONFIGS: dict[str, Callable[[int], peft.PeftConfig]] = {  # from the steps of the whole run, warm-up included
    "lora": lambda _: peft.LoraConfig(**LORA),
    "rslora": lambda _: peft.LoraConfig(**LORA, use_rslora=True),
    "dora": lambda _: peft.LoraConfig(**LORA, use_dora=True),
    "pissa": lambda _: peft.LoraConfig(**LORA, init_lora_weights="pissa"),
    "adalora": lambda steps: peft.AdaLoraConfig(**CAUSAL, **ADALORA, tinit=1, tfinal=1, deltaT=1, total_step=steps),
    "qlora": lambda _: peft.LoraConfig(**LORA),
    "ia3": lambda _: peft.IA3Config(**CAUSAL, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lora-4": lambda _: peft.LoraConfig(**(LORA | {"r": 4})),
    "lora-16": lambda _: peft.LoraConfig(**(LORA | {"r": 16})),
    "lora-qv": lambda _: peft.LoraConfig(**(LORA | {"target_modules": ["q_proj", "v_proj"]})),
    "prompt": lambda _: peft.PromptTuningConfig(**CAUSAL, num_virtual_tokens=20),
    "p_tuning": lambda _: peft.PromptEncoderConfig(
        **CAUSAL, num_virtual_tokens=20, encoder_reparameterization_type="LSTM", encoder_hidden_size=288, encoder_dropout=0.0
    ),
    "prefix": lambda _: peft.PrefixTuningConfig(**CAUSAL, num_virtual_tokens=20, prefix_projection=True, encoder_hidden_size=512),
    "p_tuning_v2": lambda _: peft.PrefixTuningConfig(**CAUSAL, num_virtual_tokens=20),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("method", "model", "start", "rows", "dtype"):
        parser.add_argument(f"--{name}")
    for name in ("steps", "batch", "total", "blocks"):  # blocks: how many of the last ones; 0: all
        parser.add_argument(f"--{name}", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa", **quantised(args.method, dtype))
    base.config.use_cache = False
    if args.method == "qlora":
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config: Any = CONFIGS[args.method](args.total)
    if args.blocks:
        config.layers_to_transform = list(range(base.config.num_hidden_layers))[-args.blocks :]
    model = peft.get_peft_model(base, config).train()
    if args.start:
        fill(model, args.method, args.start)
    share_out = model.base_model.update_and_allocate if args.method == "adalora" else lambda step: None
    rounds(model, args.rows, args.steps, args.batch, share_out)


def quantised(method: str, dtype: torch.dtype) -> dict[str, Any]:
    if method != "qlora":
        return {}
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings), "device_map": "cpu"}


def fill(model: Any, method: str, start: str) -> None:
    """Luthier's start values. PiSSA makes its own out of the weights, as both sides do."""
    ours = load_file(f"{start}/state.safetensors")
    if method in PROMPTS:
        with torch.no_grad():
            for name, value in PROMPTS[method](ours).items():
                model.prompt_encoder["default"].get_parameter(name).copy_(value)
    elif method != "pissa":
        found = peft.set_peft_model_state_dict(model, load_file(f"{start}/adapter_model.safetensors"))
        missing = [name for name in found.missing_keys if "lora_" in name or "ia3_" in name]
        assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)


def _prompt(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"embedding.weight": ours["decoder.prompt.rows"]}


def _p_tuning(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"words": "embedding.weight", "inner.": "mlp_head.0.", "outer.": "mlp_head.2.", "lstm.": "lstm_head."}
    return renamed(ours, "decoder.prompt.", names)


def _prefix(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    made = renamed(ours, "decoder.self.prefix.", {"words": "embedding.weight", "inner.": "transform.0.", "outer.": "transform.2."})
    width = made["transform.2.weight"].shape[0] // 60  # 30 layers; peft's words are as wide as a layer's keys, the rest of ours is zero
    return made | {name: made[name][:, :width] for name in ("embedding.weight", "transform.0.weight")}


def _p_tuning_v2(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"embedding.weight": ours["decoder.self.prefix.prefix"]}


def renamed(ours: dict[str, Tensor], stem: str, names: dict[str, str]) -> dict[str, Tensor]:
    return {
        theirs + name.removeprefix(stem + mine): value
        for name, value in ours.items()
        for mine, theirs in names.items()
        if name.startswith(stem + mine)
    }


PROMPTS = {"prompt": _prompt, "p_tuning": _p_tuning, "prefix": _prefix, "p_tuning_v2": _p_tuning_v2}


if __name__ == "__main__":
    main()

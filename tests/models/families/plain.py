"""Qwen (the first) and Baichuan as their papers and published code have them, in plain torch: formulas only, under the published names."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Config:
    """What a config.json says."""

    def __init__(self, **values):
        vars(self).update(values)

    def to_dict(self):
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


class RMS(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, eps):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.weight


def turned(x_BHTK):
    """Pairs (i, i + K/2) as complex numbers times e^(i position rate)."""
    length, width = x_BHTK.shape[-2:]
    rate = 1.0 / (10_000.0 ** (torch.arange(0, width, 2).float() / width))
    angle = torch.arange(length).float()[:, None] * rate  # in float32, as they were trained
    z = torch.complex(*x_BHTK.chunk(2, -1)) * torch.complex(angle.cos().double(), angle.sin().double())
    return torch.cat([z.real, z.imag], -1)


def alibi(heads, length):
    """m_h * key position, as the published code writes it: rows of the softmax may be shifted. Heads that are a power of two."""
    slope = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])
    return slope[:, None, None] * torch.arange(length)


def attention(q, k, v, heads, rotary):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    length = q.shape[2]
    q, k = (turned(q), turned(k)) if rotary else (q, k)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + (0 if rotary else alibi(heads, length))
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Output:
    def __init__(self, logits):
        self.logits = logits


class Plain(nn.Module):
    """_names: those of embedding, blocks, final norm; of a block's norms, W_pack, output, gate, up and down."""

    _supports_sdpa, _tied_weights_keys = True, None

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, hidden, bias = config.hidden_size, self.inner(config), self.bias
        shapes = {"pack": (width, 3 * width, bias), "o": (width, width, False)}
        shapes |= {"gate": (width, hidden, False), "up": (width, hidden, False), "down": (hidden, width, False)}
        self.put(self.top["embed"], nn.Embedding(config.vocab_size, width))
        self.put(self.top["norm"], RMS(width))
        for i in range(config.num_hidden_layers):
            for role, name in self.block.items():
                part = RMS(width) if role in ("norm1", "norm2") else nn.Linear(*shapes[role])
                self.put(f"{self.top['blocks']}.{i}.{name}", part)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)

    def put(self, path, part):
        parent = self
        *above, last = path.split(".")
        for name in above:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent._modules[name]
        parent.add_module(last, part)

    def forward(self, ids):
        part, config = self.get_submodule, self.config
        x = part(self.top["embed"])(ids)
        for i in range(config.num_hidden_layers):
            here = {role: part(f"{self.top['blocks']}.{i}.{name}") for role, name in self.block.items()}
            q, k, v = here["pack"](here["norm1"](x, self.eps(config))).chunk(3, -1)
            x = x + here["o"](attention(q, k, v, config.num_attention_heads, self.rotary(config)))
            y = here["norm2"](x, self.eps(config))
            x = x + here["down"](F.silu(here["gate"](y)) * here["up"](y))
        return Output(self.score(part(self.top["norm"])(x, self.eps(config))))

    def tie_weights(self):
        pass


class PlainQwen(Plain):
    bias = True
    top = {"embed": "transformer.wte", "blocks": "transformer.h", "norm": "transformer.ln_f"}
    block = {"norm1": "ln_1", "pack": "attn.c_attn", "o": "attn.c_proj", "norm2": "ln_2"}
    block |= {"gate": "mlp.w2", "up": "mlp.w1", "down": "mlp.c_proj"}

    def inner(self, config):
        return config.intermediate_size // 2

    def eps(self, config):
        return config.layer_norm_epsilon

    def rotary(self, config):
        return True

    def score(self, x):
        return self.lm_head(x)


class PlainBaichuan(Plain):
    bias = False
    top = {"embed": "model.embed_tokens", "blocks": "model.layers", "norm": "model.norm"}
    block = {"norm1": "input_layernorm", "pack": "self_attn.W_pack", "o": "self_attn.o_proj", "norm2": "post_attention_layernorm"}
    block |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}

    def inner(self, config):
        return config.intermediate_size

    def eps(self, config):
        return config.rms_norm_eps

    def rotary(self, config):
        return hasattr(config, "max_position_embeddings")

    def score(self, x):
        weight = self.lm_head.weight
        return x @ (weight / weight.norm(dim=1, keepdim=True) if hasattr(self.config, "z_loss_weight") else weight).T

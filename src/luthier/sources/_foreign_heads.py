"""The heads of transformers models under Luthier's interface: a transform and an output matrix, or one state to labels.

Modules are looked up in the model at every call, so that an adapter put around one of them takes part.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.site import bare, walk

Answer = tuple[Tensor, Tensor]
# What stands between the last state and the output matrix, by paths that a model has: each step a module, or an activation by name.
TRANSFORMS = (
    ("cls.predictions.transform",),  # BERT
    ("lm_head.dense", "gelu", "lm_head.layer_norm"),  # RoBERTa
    ("predictions.dense", "predictions.activation", "predictions.LayerNorm"),  # ALBERT
    ("vocab_transform", "activation", "vocab_layer_norm"),  # DistilBERT
    ("generator_predictions",),  # ELECTRA
    ("head",),  # ModernBERT
)


class Borrowed(nn.Module):
    """Computes with modules that another module owns: they are not registered here, so they have one name only."""

    owner: Any

    def __init__(self, owner: nn.Module):
        super().__init__()
        object.__setattr__(self, "owner", owner)


class Steps(Borrowed):
    """Modules of the owner, one after the other."""

    def __init__(self, owner: nn.Module, paths: tuple[str, ...]):
        super().__init__(owner)
        self.paths = paths

    def forward(self, x: Tensor) -> Tensor:
        for path in self.paths:
            x = nn.functional.gelu(x) if path == "gelu" else find(self.owner, path)(x)
        return x


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Capped(Borrowed):
    """cap * tanh(y / cap) on the logits. Gemma 2, arXiv:2408.00118, section 2. Not a Linear: what wants one must call it instead."""

    def __init__(self, owner: nn.Module, cap: float):
        super().__init__(owner)
        self.cap = cap

    @property
    def weight(self) -> Tensor:
        return self.owner.get_output_embeddings().weight

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(self.owner.get_output_embeddings()(x) / self.cap)


class LanguageOf(Borrowed):
    """The owner's own vocabulary head: out(transform(hidden))."""

    capped: nn.Module | None

    def __init__(self, owner: nn.Module, transform: nn.Module, out: nn.Module | None = None):
        super().__init__(owner)
        self.transform = transform
        object.__setattr__(self, "capped", out)

    @property
    def out(self) -> Any:
        """The output matrix, with what is around it."""
        return self.capped or self.owner.get_output_embeddings()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.transform(hidden))


@torch.no_grad()
def language_head(owner: Any, answer: Callable[[Tensor], Answer]) -> LanguageOf:
    """The head that gives the model's own logits on a few tokens; ValueError where none of the known forms does."""
    weight = owner.get_input_embeddings().weight
    forms = candidates(owner)
    if weight.is_meta:
        return forms[0]
    states, wanted = answer(torch.arange(5, 12, device=weight.device)[None] % weight.shape[0])
    for head in forms:
        given = head(states)
        if given.shape == wanted.shape and torch.allclose(given, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            return head
    raise ValueError(
        f"the head of {type(owner).__name__} does more than Luthier knows (a transform, a scale, a soft cap), so its loss would be wrong; "
        "add a row to TRANSFORMS in sources/_foreign_heads.py"
    )


def candidates(owner: Any) -> list[LanguageOf]:
    """The forms this model's head may have, the likeliest first."""
    paths = {path for path, _ in walk(owner)}
    steps: list[nn.Module] = [Steps(owner, row) for row in TRANSFORMS if all(step == "gelu" or step in paths for step in row)]
    config = owner.config.get_text_config(decoder=True).to_dict()
    scales = [Scaled(owner.config.hidden_size**-0.5)]  # T5
    scales += [Scaled(float(config["logit_scale"]))] if config.get("logit_scale") else []  # Cohere
    scales += [Scaled(1 / float(config["logits_scaling"]))] if config.get("logits_scaling") else []  # Granite
    plain = [LanguageOf(owner, transform) for transform in [*steps, nn.Identity(), *scales]]
    cap = config.get("final_logit_softcapping")
    return ([LanguageOf(owner, nn.Identity(), Capped(owner, cap))] if cap else []) + plain


class LabelsOf(Borrowed):
    """The owner's own label head, of one state of each sentence or of every token."""

    def __init__(self, owner: nn.Module, path: str, before: tuple[str, ...], sequence: bool):
        super().__init__(owner)
        self.path, self.before, self.sequence = path, before, sequence

    @property
    def out(self) -> Any:
        module = bare(find(self.owner, self.path))
        return module if isinstance(module, nn.Linear) else list(module.children())[-1]

    def forward(self, state: Tensor) -> Tensor:
        x = state[..., None, :] if self.sequence else state  # modules that take a sentence and read its first state themselves
        for path in self.before:
            x = nn.functional.relu(x) if path == "relu" else find(self.owner, path)(x)
        return find(self.owner, self.path)(x)


def label_head(owner: Any) -> dict[str, nn.Module]:
    """The label head of a sentence, token or span model, under its kind; {} for a bare backbone."""
    name, paths = type(owner).__name__, {path for path, _ in walk(owner)}
    kinds = {
        "ForSequenceClassification": "classify",
        "ForTokenClassification": "tag",
        "ForQuestionAnswering": "spans",
        "ForMultipleChoice": "choose",
    }
    kind = next((kind for end, kind in kinds.items() if name.endswith(end)), None)
    path = next((path for path in ("score", "classifier", "qa_outputs") if path in paths), None)
    if kind is None or path is None:
        return {}
    linear = isinstance(bare(find(owner, path)), nn.Linear)
    if kind in ("tag", "spans") or path == "score":
        return {kind: LabelsOf(owner, path, (), False)}
    if not linear:  # RoBERTa, ELECTRA: a module that reads the first state
        return {kind: LabelsOf(owner, path, (), True)}
    if "pre_classifier" in paths:  # DistilBERT
        return {kind: LabelsOf(owner, path, ("pre_classifier", "relu", "dropout"), False)}
    pooler = f"{owner.base_model_prefix}.pooler"
    return {kind: LabelsOf(owner, path, (pooler, "dropout"), pooler in paths)}


def find(owner: nn.Module, path: str) -> nn.Module:
    """The module at a path, Around included."""
    for name in path.split("."):
        child = bare(owner)._modules[name]
        assert child is not None, path
        owner = child
    return owner

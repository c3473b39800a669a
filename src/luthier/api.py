"""Luthier from Python: thin functions that call the parts. `import luthier` fetches them when they are used.

What only training and tuning need is imported there, so that a model is loaded and asked without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.sources.generate import generate_texts
from luthier.sources.model import Model
from luthier.tuning import _load

if TYPE_CHECKING:
    from luthier.run import Result
    from luthier.run_file import Run
    from luthier.tuning._attached import Attached

__all__ = ["Model", "generate", "load", "train", "tune"]


def load(
    source: Any, adapter: str | Path | None = None, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu"
) -> Model:
    """A model in evaluation mode, ready for `logits`, `generate` and `tune`.

    source: a folder in Hugging Face's form, a .gguf file, "pkg://package/path", "hub://org/name", the folder of a run or of an adapter,
    a mapping {"arch": "llama", "width": 256, ...} for fresh weights, a transformers model object, or (model, tokenizer) of transformers.
    adapter: a folder in peft's form, for this base. dtype: a torch dtype or its name ("bfloat16"); None keeps the stored one (float32
    for GGUF). ValueError or OSError in one sentence where something is missing, damaged or of another model.
    """
    return _load.load(source, adapter, dtype, device)


def tune(model: Any, method: Any, **fields: Any) -> "Attached":
    """Freezes the model and attaches a method by its name and fields: tune(model, "lora", rank=8). A transformers model object is taken as it is.

    What it returns holds the trainable parameters (`parameters`, by name) and saves them (`save`). ValueError for a field or role that
    does not fit; the model is then as it was.
    """
    from luthier.tuning import _tune

    return _tune.tune(model if isinstance(model, Model) else load(model), method, **fields)


def generate(model: Model, prompts: Any, max_tokens: int = 128, temperature: float = 1.0, **options: Any) -> list[str]:
    """One new text for each prompt, without the prompt.

    prompts: one or several; a string is continued as it stands, a conversation (a list of {"role": ..., "content": ...}) is written by
    the model's chat template. max_tokens: new tokens at most. temperature: 0 takes the likeliest token. options: top_k, top_p,
    repetition_penalty, min_tokens, samples, beams, length_penalty, stop, seed, generator, int8, template, adapters (which of the model's
    adapters answers, for all prompts or one for each); of models that fill in masks
    (diffusion_lm) steps, block, remasking, guidance, samples and the last five. ValueError for settings that do not fit and for prompts
    that are empty or too long.
    """
    return generate_texts(model, prompts, max_tokens, temperature, **options)


def train(run: "Run | str | Path") -> "Result":
    """Does what a run file, or a Run made in Python, says; its folder holds everything afterwards.

    ValueError or OSError for what is wrong with the input, luthier.config.RunFailed when the run itself fails.
    """
    from luthier.run import run as run_it
    from luthier.run_file import Run

    return run_it(run if isinstance(run, Run) else Run.from_yaml(run))

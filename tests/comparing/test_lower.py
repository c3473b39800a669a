"""States of frozen layers: equal to the bit to those worked out anew, the random generator too; worked out once."""

from typing import Any

import pytest
import torch

from luthier.comparing.lower import Known, Lower, lowest
from luthier.comparing.shared import over
from luthier.models.bert import BERT
from luthier.models.llama import Llama
from luthier.sources.model import Model
from luthier.tuning._tune import tune

SIZES: dict[str, Any] = {"vocab": 40, "width": 16, "layers": 3, "heads": 2, "hidden": 24, "positions": 32}
METHODS: dict[str, tuple[Any, int]] = {
    "probe": ({"kind": "freeze", "blocks": [], "also_train": ["norm"]}, 3),
    "last": ({"kind": "freeze", "blocks": "last 1"}, 2),
    "lora": ({"kind": "lora", "blocks": [1], "rank": 2}, 1),
    "all": ({"kind": "lora", "rank": 2}, 0),
    "embed": ({"kind": "lora", "blocks": [2], "also_train": ["embed"], "rank": 2}, 0),
    "prompt": ({"kind": "prompt", "length": 2}, 0),
    "prefix": ({"kind": "prefix", "length": 2}, 0),
    "full": ("full", 0),
}


def base(dropout: float) -> Model:
    torch.manual_seed(0)
    return Model(Llama(**SIZES, kv_heads=1, dropout=dropout).build())


def tuned(model: Model, method: Any) -> tuple[Model, list[torch.Tensor]]:
    made = Model(over(model.net))
    return made, list(tune(made, method).parameters.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_lowest_attached_layer_is_found(name: str) -> None:
    method, count = METHODS[name]
    made, trained = tuned(base(0.0), method)
    assert lowest(made.net, trained) == count


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_below_run_once_for_all_runs_and_give_the_same(dropout: float) -> None:
    model, known, calls = base(dropout), Known(), [0]
    ids, lengths = torch.arange(12)[None], (5, 7)

    def hidden(net: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        return net.hidden(ids, lengths=lengths), torch.get_rng_state()

    for name in ("last", "probe", "lora", "last"):
        made, trained = tuned(model, METHODS[name][0])
        made.net.train()
        expected = [hidden(made.net, seed) for seed in (0, 1)]
        made.net.lower = Lower(made.net, lowest(made.net, trained), "base", known)
        hooks = [block.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)) for block in made.anatomy.blocks]
        for seed in (0, 1):
            (ours, after), (theirs, wanted) = hidden(made.net, seed), expected[seed]
            assert torch.equal(ours, theirs)
            assert torch.equal(after, wanted)
        for hook in hooks:
            hook.remove()
    seeds = 2 if dropout else 1
    # last: 2 below and 1 of its own; probe: 1 more; lora: 1 below anew, for nobody had stopped there, 2 of its own; last: 1 of its own
    assert calls[0] == (2 * seeds + 2) + seeds + (seeds + 4) + 2


def test_other_weights_or_other_texts_are_not_taken_for_the_same() -> None:
    known, ids = Known(), torch.arange(12)[None]
    for model, lengths in ((base(0.0), (5, 7)), (base(0.0), (6, 6))):
        made, _ = tuned(model, METHODS["probe"][0])
        expected = made.net.hidden(ids, lengths=lengths)
        made.net.lower = Lower(made.net, 3, f"{id(model)}", known)
        assert torch.equal(made.net.hidden(ids, lengths=lengths), expected)
    assert len(known.found) == 2


def test_what_is_kept_stays_within_its_budget() -> None:
    known = Known(budget=3 * 12 * 16 * 4)
    made, _ = tuned(base(0.0), METHODS["probe"][0])
    made.net.lower = Lower(made.net, 3, "base", known)
    for i in range(8):
        made.net.hidden(torch.arange(i, i + 12)[None])
    assert known.size == known.budget
    assert len(known.found) == 3


def test_gradients_above_are_those_of_the_whole_net() -> None:
    torch.manual_seed(0)
    model = Model(BERT(**SIZES, dropout=0.0, attention_dropout=0.0).build())
    grads = []
    for shared in (False, True):
        made, trained = tuned(model, METHODS["last"][0])
        if shared:
            made.net.lower = Lower(made.net, 2, "base", Known())
            made.net.hidden(torch.arange(12)[None])
        made.net.hidden(torch.arange(12)[None]).square().sum().backward()
        grads.append([parameter.grad for parameter in trained])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

"""torch.compile sees each of our nets as one graph, forward and backward, with the numbers of the plain net."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from oracles import KINDS, gap, ours, reference, sample

from luthier.core.transformer import Transformer
from luthier.core.visibility import visible
from luthier.models.spanbert import SpanBERT
from luthier.models.unilm import UniLM

QUICK = ("llama", "gpt2", "bert")
MASK = torch.ones(2, 40, dtype=torch.bool)
MASK[0, :7] = False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in KINDS])
def test_a_net_is_one_graph_with_equal_logits_and_gradients(kind):
    net = ours(kind, reference(kind))
    ids = sample(2, 40)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert gap(compiled(ids, MASK)[MASK], net(ids, MASK)[MASK]) < 1e-12
    gradients = []
    for called in (compiled, net):
        net.zero_grad()
        called(ids).sin().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9, msg=name)


SMALL = {"vocab": 60, "width": 16, "layers": 2, "heads": 2, "hidden": 24, "positions": 50}


def spans(net: Transformer, ids: Tensor, types: Tensor) -> Tensor:
    """SpanBERT's boundary head on two spans."""
    hidden = net.hidden(ids, types=types)[0]
    return net.heads["span_boundary"](hidden[[0, 5]], hidden[[4, 9]], torch.tensor([1, 2]))


def mixed(net: Transformer, ids: Tensor, types: Tensor) -> Tensor:
    """UniLM's rows under masks of their own."""
    return net(ids, types=types, allow=visible(["sequence_to_sequence", "right_to_left"], MASK[1:].expand(2, -1), [11, 0]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("arch", "call"), [(SpanBERT, spans), (UniLM, mixed)])
def test_a_net_with_heads_or_masks_of_its_own_is_one_graph(arch: Any, call: Any):
    torch.manual_seed(0)
    net, ids, types = arch(**SMALL).build().double().eval(), sample(2, 40), torch.arange(40).expand(2, 40) // 20
    torch._dynamo.reset()
    compiled = torch.compile(partial(call, net), fullgraph=True, backend="aot_eager")
    gradients = []
    for called in (compiled, partial(call, net)):
        net.zero_grad()
        called(ids, types).sin().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9, msg=name)
    assert gap(compiled(ids, types), call(net, ids, types)) < 1e-12

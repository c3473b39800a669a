"""torch.compile sees each of our nets as one graph, forward and backward, with the numbers of the plain net."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from oracles import KINDS, gap, ours, reference, sample

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

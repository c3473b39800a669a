"""What goes around a place leaves the place itself alone, also during a call."""

import pytest
import torch
from torch import nn

from luthier.anatomy.around import Around, Own
from luthier.anatomy.switch import Switch


@pytest.mark.parametrize("base", [nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(4, 4)], ids=lambda base: type(base).__name__)
def test_own_values_are_never_in_the_module_where_another_thread_would_see_them(base: nn.Module):
    switch = Switch()
    around = Around(base, switch)
    own = nn.Parameter(torch.randn_like(base.weight))  # type: ignore[arg-type]
    around.adapters["own"] = Own({"weight": own})
    kept, met = base.weight, []
    base.register_forward_hook(lambda *_: met.append(base.weight is kept))
    x = torch.arange(4) if isinstance(base, nn.Embedding) else torch.randn(3, 4)
    with switch.using(("own",)):
        got = around(x)
    bare = type(base)(4, 4) if not isinstance(base, nn.LayerNorm) else nn.LayerNorm(4)
    bare.load_state_dict(base.state_dict() | {"weight": own.detach()})
    torch.testing.assert_close(got, bare(x), rtol=0, atol=0)
    assert met == [True]


def test_an_lstm_runs_with_its_own_values_too():
    base, switch, x = nn.LSTM(3, 4), Switch(), torch.randn(5, 2, 3)
    around, own = Around(base, switch), nn.Parameter(torch.randn(16, 3))
    around.adapters["own"] = Own({"weight_ih_l0": own})
    with switch.using(("own",)):
        (got, _) = around(x)
    bare = nn.LSTM(3, 4)
    bare.load_state_dict(base.state_dict() | {"weight_ih_l0": own.detach()})
    torch.testing.assert_close(got, bare(x)[0], rtol=0, atol=0)
    assert base._flat_weights[0] is base.weight_ih_l0

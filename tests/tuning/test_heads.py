"""An adapter brings its task head: a classifier saved as an adapter is read again on the bare base, from our files and from peft's."""

import json

import pytest
import torch

from luthier.core.transformer import Transformer
from luthier.models.bert import BERT
from luthier.sources.model import Model
from luthier.tuning._folder import CONFIG, STATE
from luthier.tuning._load import put_on
from luthier.tuning._tune import tune


def base() -> Model:
    torch.manual_seed(0)
    return Model(BERT(vocab=50, width=16, layers=2, heads=2, hidden=32, positions=40, lm=False).build().eval(), None, None, "tiny")


@pytest.mark.parametrize("noted", [True, False])
@torch.no_grad()
def test_a_classifiers_adapter_is_read_on_the_bare_base(tmp_path, noted):
    trained = base()
    trained.net.add_head("classify", 3)
    attached = tune(trained, "lora", rank=2)
    for parameter in attached.parameters.values():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    attached.save(tmp_path / "adapter")
    if not noted:  # as peft writes it
        (tmp_path / "adapter" / STATE).unlink()
        assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["task_type"] == "SEQ_CLS"
    again = base()
    put_on(again, tmp_path / "adapter")
    ids = torch.arange(3, 23).view(2, 10)
    want, got = (m.net.heads["classify"](m.net.hidden(ids)[:, 0]) for m in (trained, again))
    torch.testing.assert_close(got, want)


def test_a_head_that_came_with_an_adapter_that_does_not_fit_leaves_again(tmp_path):
    trained = base()
    trained.net.add_head("classify", 3)
    tune(trained, "lora", rank=2).save(tmp_path / "adapter")
    net = BERT(vocab=50, width=24, layers=2, heads=2, hidden=32, positions=40, lm=False).build()
    other = Model(net, None, None, "wider")
    with pytest.raises(ValueError, match="adapter"):
        put_on(other, tmp_path / "adapter")
    assert isinstance(other.net, Transformer) and "classify" not in other.net.heads

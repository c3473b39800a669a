"""Heads of fused adapters: kept with their own labels under their names, dropped, or what the fusion's head starts as."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinds import build, shake, tokens
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.core.transformer import Net
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made

BOTTLENECK = {"kind": "adapter", "after": ["ffn"], "width": 4, "norms": False}


def net_of(labels: int) -> Net:
    torch.manual_seed(0)
    net = build("our bert")
    assert isinstance(net, Net)
    net.add_head("classify", labels)
    return net


def scores(net: Net) -> Tensor:
    return net.heads["classify"](net.hidden(tokens())[:, 0])


@pytest.fixture
def trained(tmp_path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The folders of two adapters, of tasks with 2 and 5 labels, and what each says."""
    said = {}
    for name, labels in (("two", 2), ("five", 5)):
        net = net_of(labels)
        attached = attach(anatomy(net), made(BOTTLENECK, {}), name)
        shake(attached.parameters)
        said[name] = scores(net).detach()
        attached.save(tmp_path / name)
    return {name: str(tmp_path / name) for name in said}, said


def fuse(net: Net, folders: dict[str, str], **heads: str) -> Anatomy:
    body = anatomy(net)
    attach(body, made({"kind": "adapter_fusion", "adapters": folders, "heads": heads}, {}), "fused")
    return body


def test_each_adapter_keeps_its_head_whatever_its_labels(trained):
    folders, said = trained
    net = net_of(2)
    body = fuse(net, folders)
    assert scores(net).shape == (2, 2)
    for name, want in said.items():
        with body.using(name):
            torch.testing.assert_close(scores(net), want, rtol=0, atol=1e-6)
    with body.using():
        torch.testing.assert_close(scores(net), scores(net_of(2)), rtol=0, atol=1e-6)


def test_a_dropped_head_leaves_the_models(trained):
    folders, said = trained
    net = net_of(2)
    body = fuse(net, folders, five="drop")
    with body.using("five"):
        assert scores(net).shape == (2, 2)
    with body.using("two"):
        torch.testing.assert_close(scores(net), said["two"], rtol=0, atol=1e-6)


def test_the_fusions_head_starts_as_an_adapters(trained):
    folders, _ = trained
    net = net_of(2)
    body = fuse(net, folders, two="start")
    weights = {name: body.at("heads.classify.out").adapter(name).own["weight"] for name in ("two", "fused")}  # type: ignore[union-attr, index]
    assert weights["two"].equal(weights["fused"]) and weights["fused"].requires_grad and not weights["two"].requires_grad
    with pytest.raises(ValueError, match="the head of 'five' cannot be started from"):
        fuse(net_of(2), folders, five="start")


def test_a_fusions_folder_gives_the_same_scores(trained, tmp_path: Path):
    folders, _ = trained
    net = net_of(2)
    body = anatomy(net)
    attached = attach(body, made({"kind": "adapter_fusion", "adapters": folders}, {}), "fused")
    shake(attached.parameters)
    attached.save(tmp_path / "fusion")
    again = net_of(2)
    read(anatomy(again), tmp_path / "fusion", "fused")
    torch.testing.assert_close(scores(again), scores(net), rtol=0, atol=1e-6)
    with anatomy(again).using("five"):
        assert scores(again).shape == (2, 2)  # its head has stayed in its own folder


def test_heads_of_nobody_are_refused(trained):
    with pytest.raises(ValueError, match="heads names its adapters"):
        fuse(net_of(2), trained[0], three="drop")

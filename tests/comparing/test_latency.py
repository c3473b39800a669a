"""What a token costs: by turns, with and without what was trained, merged where that can be; the model stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.comparing import latency
from luthier.models.bert import BERT
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama
from luthier.run import Run, run
from luthier.sources.model import Model
from luthier.tuning._tune import tune
from tinyrun import write_run

SIZES: dict[str, Any] = {"vocab": 300, "width": 64, "layers": 2, "heads": 2, "hidden": 96, "positions": 128}
MERGES = {"lora": True, "ia3": True, "freeze": True, "prompt": False, "prefix": False, "adapter": False, "full": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LEAST_S", 0.0)


def model(arch: type) -> Model:
    torch.manual_seed(0)
    more = {"kv_heads": 2} if arch is Llama else {}
    return Model(arch(**SIZES, **more).build().eval())


@pytest.mark.parametrize("arch", [Llama, BERT])
@pytest.mark.parametrize("kind", MERGES)
def test_every_method_is_measured_and_left_as_it_was(arch: type, kind: str) -> None:
    made = model(arch)
    tune(made, kind)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = made.hidden(ids)
        found = latency.measure(made)
        assert torch.equal(made.hidden(ids), before)
    assert found["base"] is not None and found["base"] > 0
    assert found["unmerged"] is not None and found["unmerged"] > 0
    assert (found["merged"] is not None) == MERGES[kind]


def test_a_slower_adapter_is_slower_and_merging_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sleep of known length in the adapter."""
    import time

    from luthier.tuning._lowrank import LowRank

    made = model(BERT)
    tune(made, "lora", roles=["o"], rank=1, dropout=0.0)
    forward, asked = LowRank.low_rank, [0]

    def slow(self: LowRank) -> Any:
        asked[0] += 1
        time.sleep(0.02)
        return forward(self)

    monkeypatch.setattr(LowRank, "low_rank", slow)
    found = latency.measure(made)
    assert asked[0]
    base, unmerged, merged = (found[name] or 0.0 for name in ("base", "unmerged", "merged"))
    tokens = latency.TEXTS * latency.TOKENS
    assert (unmerged - base) * tokens > 0.03  # two layers, 20 ms each
    assert abs(merged - base) * tokens < 0.02


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_command_measures_finished_runs(tuning: str, tmp_path: Path) -> None:
    run(Run.from_yaml(write_run(tmp_path, tuning=tuning, training={"steps": 1})))
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "out"), "--latency", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "result.json").read_text())["latency"]
    assert found["base"] > 0 and found["unmerged"] > 0 and (found["merged"] is None) == (tuning == "full")


@pytest.mark.parametrize("arch", [BERT, GPT2])
@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_a_model_of_few_positions_is_measured_on_shorter_texts(arch: type, kind: str) -> None:
    torch.manual_seed(0)
    made = Model(arch(vocab=300, width=16, layers=1, heads=2, positions=24).build().eval())
    tune(made, kind, **({} if kind == "lora" else {"length": 20}))
    found = latency.measure(made)
    assert found["base"] is not None and found["unmerged"] is not None

"""Rows that name the adapter they are for: each trains, measures and asks its own, in training and afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

import luthier
from kinds import build, shake
from luthier.anatomy.anatomy import anatomy
from luthier.cli.main import app
from luthier.comparing import latency
from luthier.evaluation._measure import measure
from luthier.evaluation._predictions import predictions
from luthier.objectives._batch import Example, collate, pack
from luthier.objectives.causal import Causal
from luthier.run import Run, prepare, run
from luthier.sources.foreign import wrap
from luthier.training.loop import accumulate
from luthier.tuning._attached import Attached
from luthier.tuning._tune import attach, made
from tiny import tiny_chat
from tinyrun import chats, write_rows, write_run

LORA, PROMPT = {"kind": "lora", "rank": 2}, {"kind": "prompt", "length": 3}
PREFIX = {"kind": "prefix", "length": 3, "hidden": 8}
MEMBERS: dict[str, list[Any]] = {
    "lora and prompt": [LORA, PROMPT],
    "two loras": [LORA, LORA | {"dora": True}],
    "stack and ia3": [[PROMPT, LORA], "ia3"],
    "adapter and prefix": [{"kind": "adapter", "width": 4}, PREFIX],
}
NAMES = ("math", "code")


def examples(names: list[str]) -> list[Example]:
    source = torch.Generator().manual_seed(5)
    found = []
    for i, name in enumerate(names):
        ids = torch.randint(3, 99, (4 + i,), generator=source).tolist()
        found.append(Example(ids, {"lm": list(range(len(ids) - 1))}, {"lm": ids[1:]}, adapter=name))
    return found


def net_of(kind: str) -> Any:
    return (build(kind) if kind.startswith("our") else wrap(build(kind)).net).double()


def gradients(attached: Attached, net: Any, given: list[Example]) -> dict[str, Tensor]:
    """By the loop, at most 16 tokens at a time."""
    for parameter in attached.parameters.values():
        parameter.grad = None
    accumulate(net, Causal(), pack(given, micro_tokens=16), attached)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in attached.parameters.items()}


@pytest.mark.parametrize("kind", ["our llama", "gpt2"])
@pytest.mark.parametrize("case", MEMBERS)
def test_gradients_of_a_mixed_batch_are_those_of_each_adapter_alone_on_its_rows(kind: str, case: str):
    """Alone: the method on a model of its own, plain torch for the loss, one document at a time."""
    net = net_of(kind)
    torch.manual_seed(0)
    both = attach(anatomy(net), made({"parallel": MEMBERS[case], "names": NAMES}, {}))
    shake(both.parameters, 0.2)
    given = examples(["math", "code", "code", "math", "code"])
    mixed = gradients(both, net, given)
    labels = sum(len(each.labels["lm"]) for each in given)
    seen: set[str] = set()
    for name, member in zip(NAMES, MEMBERS[case], strict=True):
        own = net_of(kind)
        alone = attach(anatomy(own), made(member, {}))
        mine = list(both.parameters)[len(seen) :][: len(alone.parameters)]  # members stand in their order
        for key, parameter in zip(mine, alone.parameters.values(), strict=True):
            parameter.data.copy_(both.parameters[key].data)
        losses = []
        for each in (each for each in given if each.adapter == name):
            logits = own.logits(own.hidden(torch.tensor([each.ids])))[0, :-1]
            losses.append(F.cross_entropy(logits, torch.tensor(each.ids[1:]), reduction="sum"))
        (torch.stack(losses).sum() / labels).backward()
        for key, parameter in zip(mine, alone.parameters.values(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(mixed[key], parameter.grad, rtol=1e-5, atol=1e-6)
            assert mixed[key].any() or not parameter.grad.any()
        seen |= set(mine)
    assert seen == set(both.parameters)


def test_they_are_also_those_of_one_forward_pass_with_a_route_for_each_row():
    net = net_of("our llama")
    torch.manual_seed(0)
    both = attach(anatomy(net), made({"parallel": [LORA, PROMPT], "names": NAMES}, {}))
    shake(both.parameters, 0.2)
    given = examples(["math", "code", "code", "math"])
    mixed = gradients(both, net, given)
    batch = collate(given)
    with both.anatomy.using("default_lora", "default_prompt", rows=torch.tensor([[0], [1], [1], [0]])):
        (term,) = Causal().loss(net.hidden(batch.ids, lengths=batch.lengths), net.heads, batch).values()
    found = torch.autograd.grad(term.sum / term.count, list(both.parameters.values()))
    for (name, want), got in zip(mixed.items(), found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)


def test_rows_that_name_none_are_read_by_every_member():
    net = net_of("our llama")
    both = attach(anatomy(net), made({"parallel": [LORA, PROMPT], "names": NAMES}, {}))
    shake(both.parameters, 0.2)
    free, named = examples(["", "", "math"]), examples(["math", "math", "math"])
    found, want = gradients(both, net, free), gradients(both, net, named)
    assert all(torch.allclose(found[key], want[key], rtol=1e-9, atol=1e-9) == key.startswith("lora") for key in found)
    assert any(found[key].any() for key in found if key.startswith("prompt"))


# A run


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [{**row, "adapter": NAMES[i % 2]} for i, row in enumerate(chats(count))]


MIXED = {"parallel": [LORA | {"roles": ["q", "v"]}, PROMPT], "names": list(NAMES)}


def mixed_run(folder: Path, given: list[dict[str, Any]], **changes: Any) -> Run:
    write_rows(folder / "train.jsonl", given)
    return Run.from_yaml(
        write_run(folder, **{"tuning": None, **changes, "evaluation": ["exact_match"]}, samples=2), ["tuning=" + json.dumps(MIXED)]
    )


def test_a_run_trains_the_adapter_that_each_row_names_and_goes_on_to_the_bit(tmp_path: Path):
    config = mixed_run(tmp_path, rows(), training={"save_every": 2})
    result = run(config)
    (tmp_path / "again").mkdir()
    other = mixed_run(tmp_path / "again", [{**row, "adapter": "math"} for row in rows()], training={"save_every": 2})
    start = prepare(other).attached.state()
    trained = luthier.load(run(other).path.parent).attached.parameters
    for key, value in trained.items():  # nobody named code
        assert torch.equal(value, start[key]) == key.startswith("prompt"), key
    assert len(json.loads((result.folder / "samples.json").read_text())) == 2
    files = sorted(result.path.rglob("*.safetensors"))
    want = [path.read_bytes() for path in files]
    shutil.rmtree(result.folder / "checkpoints" / "step-6")
    run(config, resume="auto")
    assert [path.read_bytes() for path in files] == want


def test_what_is_measured_and_written_of_a_row_is_its_own_adapters(tmp_path: Path):
    config = mixed_run(tmp_path, rows())
    folder = run(config).folder
    model = luthier.load(folder)
    for parameter in model.attached.parameters.values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
    ready = prepare(config)
    held_out = ready.stream.held_out
    assert {row["adapter"] for row in held_out} == set(NAMES)
    found = predictions(model, ready.objective, held_out, 128)
    counts = {}
    for name, own in zip(NAMES, ("default_lora", "default_prompt"), strict=True):
        mine = [{**row, "adapter": ""} for row in held_out]
        with model.anatomy.using(own):
            model.attached.passes, kept = (), model.attached.passes
            alone = predictions(model, ready.objective, mine, 128)
            model.attached.passes = kept
        for row, one, other in zip(held_out, found, alone, strict=True):
            if row["adapter"] == name:
                assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
                counts[row["adapter"]] = counts.get(name, 0) + 1
            else:
                assert one["loss"] != pytest.approx(other["loss"], rel=1e-5)
    assert set(counts) == set(NAMES)
    mean = sum(row["loss"] * row["labels"] for row in found) / sum(row["labels"] for row in found)
    assert measure(model, ready.objective, held_out)["loss"] == pytest.approx(mean, rel=1e-5)


def test_a_prompt_may_name_the_adapter_that_answers(tmp_path: Path):
    model = tiny_chat()
    torch.manual_seed(0)
    shake(luthier.tune(model, MIXED).parameters, 0.5)
    prompts = ["the lute", "a viol", "two harps"]
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}
    want = []
    for prompt, name in zip(prompts, ("default_lora", "default_prompt", "default_lora"), strict=True):
        with model.anatomy.using(name):
            want += luthier.generate(model, prompt, **options)
    assert luthier.generate(model, prompts, adapters=["math", "code", "default_lora"], **options) == want
    assert luthier.generate(model, prompts[::2], adapters="math", **options) == want[::2]
    twice = luthier.generate(model, prompts[:2], adapters=["code", "math"], samples=2, max_tokens=4, seed=3)
    assert len(twice) == 4
    with pytest.raises(ValueError, match="no adapter is called 'maths'; did you mean 'math'\\?; there are "):
        luthier.generate(model, prompts, adapters="maths", **options)
    with pytest.raises(ValueError, match="2 adapters for 3 prompts"):
        luthier.generate(model, prompts, adapters=["math", "code"], **options)
    with pytest.raises(ValueError, match="'default' is several adapters in parallel; name one of them: default_math, default_code"):
        luthier.generate(model, prompts, adapters="default", **options)


def test_the_command_answers_the_rows_of_a_file_each_by_its_adapter(tmp_path: Path):
    folder = run(mixed_run(tmp_path, rows())).folder
    asked = [{"prompt": "lute viol", "adapter": "code"}, {"prompt": "harp"}, {"prompt": "lute viol", "adapter": "math"}]
    file = write_rows(tmp_path / "asked.jsonl", asked)
    arguments = ["generate", str(folder), "--prompts", str(file), "--temperature", "0", "--max-tokens", "5", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = [json.loads(line)["prompt"][-1]["content"] for line in done.stdout.splitlines()]
    assert said == ["lute viol", "harp", "lute viol", "harp"]  # who names none asks every member
    write_rows(file, [{"prompt": "harp", "adapter": "nobody"}])
    wrong = CliRunner().invoke(app, arguments)
    assert (wrong.exit_code, "no adapter is called 'nobody'" in wrong.stderr) == (2, True)
    alone = CliRunner().invoke(app, ["evaluate", str(folder), "--rows", "2"])
    assert alone.exit_code == 0, alone.output


def test_each_adapter_has_a_head_of_its_own(tmp_path: Path):
    """A run of classes: trained, saved, measured again, timed."""
    texts = [{"text": f"a lute {i}", "label": ["x", "y"][i % 2], "adapter": NAMES[i % 3 > 0]} for i in range(20)]
    data = {"path": str(write_rows(tmp_path / "texts.jsonl", texts))}
    path = write_run(tmp_path, data=data, objective={"kind": "classify"}, tuning=None, evaluation=["accuracy"])
    result = run(Run.from_yaml(path, ["tuning=" + json.dumps(MIXED)]))
    model = luthier.load(result.folder)
    heads = [model.attached.parameters[f"{label}.heads.classify.out.weight"] for label in ("lora", "prompt")]
    assert not torch.equal(*heads)
    assert all(isinstance(value, float) for value in latency.measure(model).values())
    alone = CliRunner().invoke(app, ["evaluate", str(result.folder)])
    assert alone.exit_code == 0, alone.output


# What is refused


def test_an_unknown_name_is_told_with_its_row_before_anything_is_written(tmp_path: Path):
    given = rows()
    given[4]["adapter"], given[7]["adapter"] = "codee", "nobody"
    with pytest.raises(ValueError) as told:
        run(mixed_run(tmp_path, given))
    file = tmp_path / "train.jsonl"
    lines = str(told.value).splitlines()
    assert lines[0].startswith(f"{file}:5: no adapter is called 'codee'; did you mean 'code'?; there are ") and "math, code" in lines[0]
    assert lines[1].startswith(f"{file}:8: no adapter is called 'nobody'; there are ")
    assert not (tmp_path / "out").exists()


def test_the_names_of_a_parallel_composition_are_one_for_each_member(tmp_path: Path):
    body = anatomy(build("our llama"))
    wrong = {
        "parallel has 2 members and the names a; give each one of its own": {"parallel": [LORA, "ia3"], "names": ["a"]},
        "parallel has 2 members and the names a, a;": {"parallel": [LORA, "ia3"], "names": ["a", "a"]},
        "cannot be called 'a-b'": {"parallel": [LORA, "ia3"], "names": ["a-b", "c"]},
        "would be called 'lora'": {"parallel": ["ia3", LORA], "names": ["lora", "b"]},
    }
    for sentence, method in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            attach(body, made(method, {}))
        assert not body.adapters and not body.arounds()
    nested = attach(body, made({"parallel": [{"parallel": [LORA, "ia3"], "names": ["x", "y"]}, PROMPT], "names": ["a", "b"]}, {}))
    assert nested.passes == ("default_a_x", "default_a_y", "default_b")
    same = attach(body, made({"parallel": ["ia3", LORA], "names": ["ia3", "lora"]}, {}), "same")
    assert same.passes == ("same_ia3", "same_lora")


def test_rows_that_are_compared_with_each_other_name_no_adapters():
    with pytest.raises(ValueError, match="they cannot name adapters of their own: math, code"):
        pack(examples(["math", "code"]), 64, together=True)


def test_files_with_and_without_the_column_are_mixed(tmp_path: Path):
    plain, named = write_rows(tmp_path / "plain.jsonl", chats(8)), write_rows(tmp_path / "named.jsonl", rows(8))
    ready = prepare(Run.from_yaml(write_run(tmp_path, data={"path": [str(plain), str(named)], "held_out": 2})))
    assert ready.stream.adapters.keys() == set(NAMES)


def test_a_column_of_another_name_is_told_by_data_columns(tmp_path: Path):
    given = [{"text": f"a lute {i}", "topic": NAMES[i % 2]} for i in range(8)]
    data = {"path": str(write_rows(tmp_path / "topics.jsonl", given)), "columns": {"text": "text", "adapter": "topic"}, "held_out": 0}
    path = write_run(tmp_path, data=data, objective={"kind": "causal"}, tuning=None)
    assert prepare(Run.from_yaml(path, ["tuning=" + json.dumps(MIXED)])).stream.adapters.keys() == set(NAMES)

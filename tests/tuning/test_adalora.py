"""AdaLoRA: scores, budget and masks step by step as peft's allocator makes them; ranks that really go; resuming; files both ways."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinds import LESS, THEIRS, build, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.merge import merge
from luthier.run import Ready, Run, prepare, run, steps
from luthier.training import checkpoint
from luthier.training.loop import last
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from luthier.tuning.adalora import AdaLoRA, _Allocator
from pefts import ours_of, with_peft
from tinyrun import write_run

SHORT = {"roles": ("q", "v"), "rank": 4, "target": 2, "alpha": 8.0, "steps": 12, "warmup": 2, "final": 3, "every": 2}
all_kinds = pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LESS else ()) for kind in THEIRS])


def theirs(net: nn.Module, **settings) -> nn.Module:
    config = {"init_r": 4, "target_r": 2, "lora_alpha": 8, "total_step": 12, "tinit": 2, "tfinal": 3, "deltaT": 2, "orth_reg_weight": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(net, peft.AdaLoraConfig(**config | {"target_modules": ["q_proj", "v_proj"]} | settings)).eval()


def train(net: nn.Module, attached: Attached, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps first .. last, as the loop makes them."""
    for step in range(first, last + 1):
        optimizer.zero_grad()
        loss = logits(net).log_softmax(-1).gather(-1, tokens()[..., None]).mean().neg()
        (loss + attached.penalty()).backward()  # type: ignore[operator]
        optimizer.step()
        attached.after_step(step)


def test_scores_masks_and_weights_are_pefts_step_by_step():
    other = theirs(build("llama").double())
    net = build("llama").double()
    attached = attach(anatomy(net), made("adalora", SHORT))
    pairs = {}
    for name, value in other.named_parameters():
        if value.requires_grad and "ranknum" not in name:
            layer, role, part = name.split(".")[4], name.split(".")[6][0], name.split(".")[7][-1].lower()
            pairs[f"decoder.{layer}.{role}.{part}"] = (name.removeprefix("base_model.model."), value)
    assert pairs.keys() == attached.parameters.keys()
    with torch.no_grad():
        for name, (_, value) in pairs.items():
            attached.parameters[name].copy_(value)
    mine, its = torch.optim.Adam(attached.parameters.values(), 0.02), torch.optim.Adam([value for _, value in pairs.values()], 0.02)
    allocator = other.base_model.rankallocator  # type: ignore[union-attr]
    gone = []
    for step in range(1, 13):
        train(net, attached, mine, step, step)
        its.zero_grad()
        out = logits(other)
        regular = [value for name, (_, value) in pairs.items() if name[-1] != "e"]
        grams = [p @ p.T if len(p) == 4 else p.T @ p for p in regular]
        penalty = sum(torch.norm(gram - torch.eye(4, dtype=gram.dtype)) for gram in grams) / len(grams)
        (out.log_softmax(-1).gather(-1, tokens()[..., None]).mean().neg() + 0.1 * penalty).backward()
        its.step()
        other.base_model.update_and_allocate(step)  # type: ignore[union-attr, operator]
        for name, (key, value) in pairs.items():
            if step == 12:  # the others are gone
                kept = attached.memory[f"{name.rpartition('.')[0]}.kept"]
                value = value[:, kept] if name.endswith(".b") else value[kept]
            torch.testing.assert_close(attached.parameters[name], value, rtol=1e-9, atol=1e-12)
            if step < 9:  # afterwards it has forgotten them
                averages = (
                    allocator.exp_avg_ipt[f"model.{key.removeprefix('model.')}"],
                    allocator.exp_avg_unc[f"model.{key.removeprefix('model.')}"],
                )
                torch.testing.assert_close(attached.memory[f"{name}.importance"], averages[0], rtol=1e-9, atol=1e-15)
                torch.testing.assert_close(attached.memory[f"{name}.uncertainty"], averages[1], rtol=1e-9, atol=1e-15)
        gone.append(
            16 - sum(int((value != 0).sum()) for name, value in attached.parameters.items() if name.endswith(".e")) if step > 1 else 0
        )
    assert gone[:3] == [0, 0, 0] and gone[3] > 0 and gone[8:] == [8] * 4  # half of 4 matrices' 4 ranks


def test_its_penalty_is_what_peft_adds():
    other = theirs(build("llama"))
    ids = tokens()
    with_it = other.base_model(input_ids=ids, labels=ids).loss  # type: ignore[operator]
    other.peft_config["default"].orth_reg_weight = 0.0  # type: ignore[index, union-attr]
    without = other.base_model(input_ids=ids, labels=ids).loss  # type: ignore[operator]
    attached = attach(anatomy(build("llama")), made("adalora", SHORT))
    values = {name: value for name, value in other.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, value in values.items():
            attached.parameters[f"decoder.{name.split('.')[4]}.{name.split('.')[6][0]}.{name.split('.')[7][-1].lower()}"].copy_(value)
    torch.testing.assert_close(attached.penalty(), with_it - without, rtol=1e-4, atol=1e-5)


def test_ranks_that_went_are_not_in_the_file(tmp_path):
    net = build("llama")
    attached = attach(anatomy(net), made("adalora", SHORT))
    train(net, attached, torch.optim.Adam(attached.parameters.values(), 0.02), 1, 12)
    attached.save(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(len(value) for name, value in tensors.items() if name.endswith("lora_E")) == 8
    again = build("llama")
    back = read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in back.parameters.values()) == sum(p.numel() for p in attached.parameters.values())
    torch.testing.assert_close(logits(with_peft("llama", tmp_path)), logits(net), rtol=0, atol=1e-5)
    back.save(tmp_path / "again")
    third = build("llama")
    read(anatomy(third), tmp_path / "again")
    torch.testing.assert_close(logits(third), logits(net), rtol=0, atol=1e-5)


def finished(method: AdaLoRA, folder: Path, **training) -> tuple[Attached, dict[str, torch.Tensor], dict]:
    """A run of 12 steps by the loop over a toy's worth of batches; what is attached then, and its file."""
    config = Run.from_yaml(write_run(folder, training={"steps": 12, "save_every": 5, **training}))
    config = replace(config, tuning=method)
    attached = []

    def kept(config: Run) -> Ready:
        ready = prepare(config)
        attached.append(ready.attached)
        return ready

    last(steps(config, make_ready=kept))
    settings = json.loads((folder / "out" / "adapter" / "adapter_config.json").read_text())
    return attached[0], load_file(folder / "out" / "adapter" / "adapter_model.safetensors"), settings


@pytest.mark.parametrize("training", [{}, {"optimizer": "adafactor"}, {"paged": True, "resident_mb": 0}], ids=str)
@pytest.mark.parametrize("fields", [{"final": 0}, {"final": 3}], ids=str)
def test_ranks_leave_the_memory_and_the_file_is_as_if_they_were_masked(
    fields: dict, training: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {name: value for name, value in SHORT.items() if name != "steps"} | fields
    folders = [tmp_path / name for name in ("masked", "removed")]
    for folder in folders:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(_Allocator, "_remove", lambda self: {})
        masked, want, pattern = finished(AdaLoRA(**settings), folders[0], **training)
    removed, found, other = finished(AdaLoRA(**settings), folders[1], **training)
    assert found.keys() == want.keys() and pattern == other
    assert all(torch.equal(found[name], value) for name, value in want.items())
    ranks = {name: len(value) for name, value in removed.parameters.items() if name.endswith(".e")}
    assert sum(ranks.values()) == 8 and sum(p.numel() for p in removed.parameters.values()) < 0.6 * sum(
        p.numel() for p in masked.parameters.values()
    )
    assert sum(value.numel() for name, value in removed.memory.items() if not name.endswith(".kept")) == 0
    last_one = checkpoint.read(folders[1] / "out" / "checkpoints" / "step-12")
    for key, value in last_one.tensors.get("optimizer", {}).items():
        name, _, field = key.rpartition("/")
        shape = removed.parameters[name].shape
        assert value.shape in ((), shape, shape[:1] if field == "rows" else shape[1:]), key


@pytest.mark.parametrize("fields", [{"final": 0}, {"final": 4}], ids=str)
def test_a_run_goes_on_to_the_bit_across_the_removal(fields: dict, tmp_path: Path):
    settings = {name: value for name, value in SHORT.items() if name != "steps"} | fields
    training = {"ema": 0.5, "save_every": 1, "keep": 20}
    _, want, _ = finished(AdaLoRA(**settings), tmp_path, **training)
    config = replace(Run.from_yaml(tmp_path / "run.yaml"), tuning=AdaLoRA(**settings))
    assert sum(len(value) for name, value in want.items() if name.endswith("lora_E")) == 8
    for step in (7, 12):
        for later in range(step + 1, 13):
            shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{later}")
        run(config, resume="auto")
        found = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in want.items()), step


def test_weights_from_before_the_removal_come_back_whole():
    net = build("llama")
    attached = attach(anatomy(net), made("adalora", SHORT))
    train(net, attached, torch.optim.SGD(attached.parameters.values(), 0.5), 1, 7)
    early, want = {name: value.clone() for name, value in attached.state().items()}, logits(net)
    train(net, attached, torch.optim.SGD(attached.parameters.values(), 0.5), 8, 12)
    late, after = {name: value.clone() for name, value in attached.state().items()}, logits(net)
    assert sum(value.numel() for value in late.values()) < 0.3 * sum(value.numel() for value in early.values())
    attached.load_state(early)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=0)
    attached.load_state(late)
    torch.testing.assert_close(logits(net), after, rtol=0, atol=0)
    wrong = late | {"decoder.0.q.a": torch.zeros(2, 7)}
    with pytest.raises(ValueError, match=r"of another shape: decoder\.0\.q\.a"):
        attached.load_state(wrong)
    torch.testing.assert_close(logits(net), after, rtol=0, atol=0)


def test_a_matrix_may_lose_all_its_ranks(tmp_path: Path):
    net = build("llama")
    attached = attach(anatomy(net), made("adalora", SHORT | {"steps": 2, "warmup": 0, "final": 0, "orthogonal": 0.0}))
    shake(attached.parameters, 0.1)
    with torch.no_grad():
        for name, value in attached.parameters.items():
            if name.startswith("decoder.0.q"):
                value.mul_(1e-6)  # the lowest scores
    optimizer = torch.optim.AdamW(attached.parameters.values(), 1e-9, fused=True)
    train(net, attached, optimizer, 1, 2)
    assert attached.parameters["decoder.0.q.a"].shape == (0, 32)
    want = logits(net)
    attached.save(tmp_path)
    again = build("llama")
    read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), want, rtol=0, atol=1e-5)


def test_resuming_goes_on_to_the_bit():
    whole, half = build("llama"), build("llama")
    torch.manual_seed(0)
    first = attach(anatomy(whole), made("adalora", SHORT))
    torch.manual_seed(0)
    second = attach(anatomy(half), made("adalora", SHORT))
    train(whole, first, torch.optim.SGD(first.parameters.values(), 0.5), 1, 12)
    train(half, second, torch.optim.SGD(second.parameters.values(), 0.5), 1, 6)
    resumed = build("llama")
    third = attach(anatomy(resumed), made("adalora", SHORT))
    third.load_state({name: value.clone() for name, value in second.state().items()})
    train(resumed, third, torch.optim.SGD(third.parameters.values(), 0.5), 7, 12)
    for name, value in first.state().items():
        assert torch.equal(third.state()[name], value), name


def test_the_rank_at_the_start_may_be_the_target():
    net = build("llama")
    attached = attach(anatomy(net), made("adalora", SHORT | {"target": 4}))
    train(net, attached, torch.optim.SGD(attached.parameters.values(), 0.5), 1, 12)
    assert all(value.all() for name, value in attached.memory.items() if name.endswith(".kept"))


@all_kinds
@pytest.mark.parametrize("fields", [{}, {"roles": ("v", "o"), "blocks": "last 1", "also_train": ("embed",)}], ids=["all", "some"])
def test_peft_loads_what_we_save(kind: str, fields: dict, tmp_path):
    net = build(kind)
    attached = attach(anatomy(net), made("adalora", {"rank": 4, "target": 2} | fields))
    shake(attached.parameters, 0.2)
    for i, (name, kept) in enumerate(sorted((name, value) for name, value in attached.memory.items() if name.endswith(".kept"))):
        kept[i % 3 :: 2] = False
        attached.parameters[name.replace(".kept", ".e")].data[~kept] = 0
    attached.save(tmp_path)
    torch.testing.assert_close(logits(with_peft(kind, tmp_path)), logits(net), rtol=0, atol=1e-4)
    again = build(kind)
    read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-4)
    want = logits(net)
    assert merge(anatomy(net)) < 1e-4
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "phi3"])
def test_we_load_what_peft_saves(kind: str, tmp_path: Path):
    targets = {"gpt2": ["c_attn"], "bert": ["query", "value"], "t5": ["q", "wo"], "phi3": ["qkv_proj"]}
    model = theirs(build(kind), target_modules=targets.get(kind, ["q_proj", "v_proj"]))
    shake({name: p for name, p in model.named_parameters() if p.requires_grad}, 0.2)
    names = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if "lora_E" in name]
    pattern = {name: [True, i % 2 == 0, False, True] for i, name in enumerate(names)}
    model.base_model.rankallocator.mask_using_rank_pattern(model.base_model.model, pattern)  # type: ignore[union-attr, operator]
    model.peft_config["default"].rank_pattern = pattern  # type: ignore[index, union-attr]
    model.save_pretrained(str(tmp_path))  # type: ignore[operator]
    for net in [build(kind)] + ([ours_of(kind)] if kind in ("llama", "gpt2", "bert") else []):
        read(anatomy(net), tmp_path)
        torch.testing.assert_close(logits(net), logits(model), rtol=0, atol=1e-4)


def test_the_budget_is_a_cubic_between_its_ends():
    method = AdaLoRA(**SHORT)
    assert [method.budget(step, 16, 8) for step in range(1, 13)] == [16, 16, 13, 10, 9, 8, 8, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"target": 13}, "target=13"),
        ({"steps": 10, "warmup": 6, "final": 4}, "warmup=6"),
        ({"betas": (0.85, 1.0)}, "betas"),
        ({"roles": ("embed",)}, "embed"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields: dict, words: str):
    net = build("llama")
    with pytest.raises(ValueError, match=words):
        attach(anatomy(net), made("adalora", fields))
    assert not anatomy(net).adapters


def test_the_files_keys_are_pefts(tmp_path):
    attach(anatomy(build("llama")), made("adalora", SHORT)).save(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs(build("llama")).save_pretrained(str(tmp_path / "theirs"))  # type: ignore[operator]
    ours, other = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in other.items()}
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config.keys() <= json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()).keys()


def test_a_schedule_without_steps_takes_the_runs():
    net = build("our llama")
    attached = attach(anatomy(net), made("adalora", {"roles": ("q",), "warmup": 1, "final": 1}))
    with pytest.raises(ValueError, match=r"tuning\.steps"):
        attached.after_step(1)
    with pytest.raises(ValueError, match="leave no step of steps=2"):
        attached.begin(2)
    attached.begin(10)
    assert attached.method.steps == 10
    attached.after_step(1)

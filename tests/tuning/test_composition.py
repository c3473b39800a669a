"""Several methods on one model as one: what holds for each composition on each kind of model, and what cannot be, in words."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import luthier
from kinds import NO_BIAS, build, check_padding_and_packing, greedy, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.compose import split
from luthier.anatomy.merge import merge
from luthier.cli.main import app
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.run import Run, run
from luthier.sources.foreign import wrap
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from tiny import tiny_chat
from tinyrun import values, write_run

PROMPT, PREFIX = {"kind": "prompt", "length": 3}, {"kind": "prefix", "length": 3, "hidden": 8}
NARROW = {"kind": "adapter", "width": 4, "norms": False}
LORA = {"kind": "lora", "rank": 2}
STACKS: dict[str, Any] = {
    "lora and prompt": [LORA, PROMPT],
    "adapter and prefix": [{"kind": "adapter", "width": 4}, PREFIX],
    "ia3 and lora": ["ia3", LORA],
    "bitfit and prompt": ["bitfit", PROMPT],
    "three": [LORA, "ia3", PREFIX],
    "an average in a stack": [PROMPT, {"average": [LORA, "ia3"], "weights": [0.3, 0.7]}],
}
FURTHER: dict[str, Any] = {
    "a stack in an average": {"average": [LORA, {"stack": [LORA, "ia3"]}]},
    "a fusion in a stack": [LORA, {"fuse": [NARROW, NARROW | {"width": 3}]}],
    "a fusion of an average": {"fuse": [{"average": [NARROW, NARROW]}, LORA | {"roles": ["o", "down"]}]},
    "a split in a stack": [PROMPT, {"split": [LORA, "ia3"], "lengths": [4]}, LORA],
    "parallel in a stack": ["ia3", {"parallel": [LORA, PROMPT]}],
    "mam and lora": [{"kind": "mam", "length": 3, "hidden": 8, "width": 4}, LORA],
}
MERGES = ("ia3 and lora", "a stack in an average")
MAIN = ["our llama", "our gpt2", "our bert", "our t5", "llama"]
CASES = [(kind, name) for kind in MAIN for name in STACKS] + [(kind, name) for kind in ("our llama", "bert") for name in FURTHER]
every = pytest.mark.parametrize("kind, name", CASES)


def start(kind: str, name: str, noise: float = 0.1) -> tuple[nn.Module, Attached]:
    if kind in NO_BIAS and name == "bitfit and prompt":
        with pytest.raises(ValueError, match="has no bias: bitfit has nothing to train"):
            attach(anatomy(build(kind)), made(STACKS[name], {}))
        pytest.skip("refused in words")
    net = build(kind)
    torch.manual_seed(4)
    attached = attach(anatomy(net), made((STACKS | FURTHER)[name], {}))
    shake(attached.parameters, noise)
    return net, attached


def said(net: nn.Module, attached: Attached) -> Tensor:
    """Logits; of adapters in parallel those of each, one after the other."""
    found = []
    for running in attached.running():
        with running:
            found.append(logits(net))
    return torch.cat(found)


def dead(attached: Attached) -> list[str]:
    """Parameters without a gradient, but for the key's bias, to which softmax is blind, and BERT's pooler, which is for heads of sentences."""
    found = [key for key, p in attached.parameters.items() if p.grad is None or not p.grad.any()]
    return [key for key in found if not key.endswith("key.bias") and "pooler" not in key]


@every
def test_every_parameter_of_every_member_is_reached(kind: str, name: str):
    net, attached = start(kind, name)
    out = said(net, attached)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert dead(attached) == []
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in attached.parameters.values()}
    assert {key.partition(".")[0] for key in attached.parameters} == set(attached.members)


@every
def test_disabled_it_is_the_base_to_the_bit(kind: str, name: str):
    net, attached = start(kind, name)
    base = build(kind).requires_grad_(False)
    with attached.anatomy.using():
        torch.testing.assert_close(logits(net), logits(base), rtol=0, atol=0 if kind != "our t5" else 1e-5)
        again = logits(net)
    assert not torch.allclose(said(net, attached)[:2], again)
    attached.anatomy.remove("default")
    assert not attached.anatomy.adapters and not attached.anatomy.arounds()
    torch.testing.assert_close(logits(net), again, rtol=0, atol=0)


@every
def test_it_is_saved_and_loaded_as_one_folder(kind: str, name: str, tmp_path: Path):
    net, attached = start(kind, name)
    with torch.no_grad():
        want = said(net, attached)
    attached.save(tmp_path / "one")
    record = json.loads((tmp_path / "one" / "composition.json").read_text())
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted([*record["members"], "composition.json"])
    again = build(kind)
    found = read(anatomy(again), tmp_path / "one", "other")
    with torch.no_grad():
        torch.testing.assert_close(said(again, found), want, rtol=0, atol=1e-5)
    assert anatomy(again).active == ("other",)
    assert not any(p.requires_grad for p in found.parameters.values())


@every
def test_training_goes_on_from_its_folder_and_from_its_state(kind: str, name: str, tmp_path: Path):
    net, attached = start(kind, name)
    attached.save(tmp_path / "one")
    resumed = build(kind)
    pairs = [(net, attached), (resumed, read(anatomy(resumed), tmp_path / "one", trainable=True))]
    _, other = start(kind, name, 0.3)
    other.load_state(attached.state())
    pairs.append((other.anatomy.net, other))
    for one, each in pairs:
        said(one, each).square().mean().backward()
        torch.optim.SGD(each.parameters.values(), 0.1).step()
    wanted = said(*pairs[0])
    assert pairs[1][1].parameters.keys() == attached.parameters.keys()
    torch.testing.assert_close(said(*pairs[1]), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(said(*pairs[2]), wanted, rtol=0, atol=0)


@every
def test_it_merges_where_every_member_does_and_else_says_who_does_not(kind: str, name: str):
    net, attached = start(kind, name)
    want = said(net, attached)
    if name in MERGES:
        assert merge(attached.anatomy) < 1e-4
        assert (logits(net) - want).abs().max() < 1e-4
        assert not attached.anatomy.adapters
        return
    with pytest.raises(ValueError, match=r"cannot be merged: its output is not linear|put one of them to work|does not go with"):
        merge(attached.anatomy)
    torch.testing.assert_close(said(net, attached), want, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*STACKS, *FURTHER])
@pytest.mark.parametrize("kind", ["our gpt2", "gpt2"])
def test_padding_on_either_side_and_packing_change_nothing(kind: str, name: str):
    if name == "parallel in a stack":
        pytest.skip("its members are each a composition of the others here")
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    shake(attach(anatomy(net), made((STACKS | FURTHER)[name], {})).parameters)
    check_padding_and_packing(net)


@pytest.mark.parametrize("name", [*STACKS, *FURTHER])
@pytest.mark.parametrize("kind", ["our gpt2", "our t5"])
def test_generation_with_a_cache_is_greedy_without(kind: str, name: str):
    if kind == "our t5" and name == "a split in a stack":
        pytest.skip("refused in words")
    net, attached = start(kind, name)
    prompts = [tokens()[0].tolist(), tokens()[1, :4].tolist()]
    for running in attached.running():
        with running:
            want = [greedy(net, prompt, 5) for prompt in prompts]
            assert [list(row)[-5:] for row in generate_ids(net, prompts, Sampling(temperature=0.0, max_tokens=5))] == want


@pytest.mark.parametrize("name", [*STACKS, *FURTHER])
def test_recomputation_gives_the_same_gradients(name: str):
    grads = []
    for recompute in (False, True):
        net, attached = start("our gpt2", name)
        net.recompute = recompute  # type: ignore[assignment]
        with attached.anatomy.using("default_1" if attached.passes else "default"):
            out = logits(net)
        attached.anatomy.activate()  # the set belongs to the batch
        out.square().mean().backward()
        grads.append({key: p.grad for key, p in attached.parameters.items()})
    for key, grad in grads[0].items():
        assert (grad is None) == (grads[1][key] is None)
        if grad is not None:
            torch.testing.assert_close(grads[1][key], grad, rtol=1e-4, atol=1e-6)


# What each way of composing means


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_and_prompt_are_pefts_prompt_on_pefts_merged_lora(kind: str, tmp_path: Path):
    """peft refuses the two at once, but reads each of the folder's members."""
    net = wrap(build(kind)).net
    attached = attach(anatomy(net), made(STACKS["lora and prompt"], {}))
    shake(attached.parameters)
    attached.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(build(kind), str(tmp_path / "lora")).merge_and_unload()
        theirs = peft.PeftModel.from_pretrained(merged, str(tmp_path / "prompt")).eval()
    with torch.no_grad():
        want = theirs(input_ids=tokens()).logits[:, 3:]
        torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)
        assert (want - logits(build(kind))).abs().max() > 0.1


def by_hand(kind: str, methods: dict[str, Any], attached: Attached) -> nn.Module:
    """The same adapters put on one by one, with the composition's values."""
    net = build(kind)
    for label, method in methods.items():
        alone = attach(anatomy(net), made(method, {}), label)
        with torch.no_grad():
            for key, parameter in alone.parameters.items():
                parameter.copy_(attached.parameters[f"{label}.{key}"])
    return net


def test_a_stack_is_its_members_at_work_in_order():
    net, attached = start("our gpt2", "three")
    hand = by_hand("our gpt2", {"lora": LORA, "ia3": "ia3", "prefix": PREFIX}, attached)
    anatomy(hand).activate("lora", "ia3", "prefix")
    torch.testing.assert_close(logits(net), logits(hand), rtol=0, atol=0)
    anatomy(hand).activate("ia3", "lora", "prefix")
    assert not torch.allclose(logits(net), logits(hand))  # the factors would no longer fall on lora's term


@pytest.mark.parametrize("kind", ["our gpt2", "llama"])
def test_a_split_gives_tokens_to_its_members_by_their_place(kind: str):
    net = build(kind)
    attached = attach(anatomy(net), made({"split": [LORA, "ia3"], "lengths": [3]}, {}))
    shake(attached.parameters)
    hand = by_hand(kind, {"lora": LORA, "ia3": "ia3"}, attached)
    with anatomy(hand).using("lora", "ia3", rows=split((3, 5), 2)):
        want = logits(hand)
    torch.testing.assert_close(logits(net), want)
    with anatomy(net).using("default_lora"):
        alone = logits(net)
    torch.testing.assert_close(alone[:, :3], want[:, :3])
    assert not torch.allclose(alone[:, 3:], want[:, 3:])


@pytest.mark.parametrize("kind", ["our llama", "our gpt2", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["adapter", "mam", "unipelt"])
def test_what_sees_one_place_from_another_goes_around_a_split(kind: str, method: str):
    """Around the split at its entrance every token takes the same adapters, at its end not."""
    around = {"adapter": {"reads": "in", "after": ["ffn"], "norms": False, "width": 4}, "mam": {"length": 2, "hidden": 4, "width": 4}}
    outer = {"kind": method, **around.get(method, {"length": 2, "hidden": 4, "rank": 2})}
    inner = {"kind": "adapter", "reads": "sum", "after": ["ffn"], "norms": False, "width": 4}
    net = build(kind)
    attached = attach(anatomy(net), made([outer, {"split": [inner, LORA], "lengths": [3]}], {}))
    shake(attached.parameters)
    names = ("default_adapter", "default_adapter2") if method == "adapter" else (f"default_{method}", "default_adapter")
    with anatomy(net).using(*names):
        alone = logits(net)
    torch.testing.assert_close(logits(net)[:, :3], alone[:, :3])
    logits(net).square().mean().backward()
    assert all(p.grad is not None for p in attached.parameters.values())


@pytest.mark.parametrize("kind", ["our llama", "our bert", "llama"])
def test_members_in_parallel_learn_as_if_each_were_alone(kind: str):
    net = build(kind)
    attached = attach(anatomy(net), made({"parallel": [LORA, PROMPT]}, {}))
    shake(attached.parameters)
    sum(out.square().mean() for out in said(net, attached).chunk(2)).backward()  # type: ignore[union-attr]
    assert attached.passes == ("default_lora", "default_prompt")
    for label, method in (("lora", LORA), ("prompt", PROMPT)):
        alone = by_hand(kind, {label: method}, attached)
        own = {id(p): p for _, around in anatomy(alone).arounds() for p in around.adapters.parameters()}
        logits(alone).square().mean().backward()
        mine = [p.grad for key, p in attached.parameters.items() if key.startswith(f"{label}.")]
        for grad in mine:
            assert any(p.grad.shape == grad.shape and torch.allclose(p.grad, grad, rtol=1e-4, atol=1e-7) for p in own.values())


def test_two_virtual_methods_stand_one_behind_the_other():
    net = build("our gpt2")
    attached = attach(anatomy(net), made([PROMPT, {"kind": "p_tuning", "length": 2}], {}))
    shake(attached.parameters)
    rows = {name: around.adapters[name].table() for _, around in anatomy(net).arounds() for name in around.adapters}
    both = torch.cat([rows["default_prompt"], rows["default_p_tuning"]]).detach()
    one = build("our gpt2")
    alone = attach(anatomy(one), made({"kind": "prompt", "length": 5}, {}))
    next(iter(alone.parameters.values())).data.copy_(both)
    torch.testing.assert_close(logits(net), logits(one))


# Parameters that several members train


def with_head() -> nn.Module:
    torch.manual_seed(1)
    net = build("our bert")
    net.add_head("classify", 3)  # type: ignore[operator]
    return net.eval()


def scores(net: nn.Module) -> Tensor:
    return net.heads["classify"](net.hidden(tokens())[:, 0])  # type: ignore[index, operator]


@pytest.mark.parametrize(
    "method", [[LORA, PROMPT], {"average": [LORA, "ia3"]}, {"fuse": [NARROW, NARROW]}], ids=["stack", "average", "fuse"]
)
def test_a_tasks_head_is_one_for_all_that_work_together(method: Any, tmp_path: Path):
    net = with_head()
    attached = attach(anatomy(net), made(method, {}))
    assert len([key for key in attached.parameters if "heads.classify.out.weight" in key]) == 1
    shake(attached.parameters)
    scores(net).square().sum().backward()
    assert dead(attached) == []
    attached.save(tmp_path / "one")
    again = with_head()
    resumed = read(anatomy(again), tmp_path / "one", trainable=True)
    torch.testing.assert_close(scores(again), scores(net), rtol=0, atol=1e-5)
    assert resumed.parameters.keys() == attached.parameters.keys()
    for label in ("lora", "prompt") if isinstance(method, list) else ():  # each member's folder is whole in itself
        alone = with_head()
        read(anatomy(alone), tmp_path / "one" / label)
        with anatomy(net).using(f"default_{label}"):
            torch.testing.assert_close(scores(alone), scores(net), rtol=0, atol=1e-5)


def test_members_in_parallel_have_heads_of_their_own():
    attached = attach(anatomy(with_head()), made({"parallel": [LORA, "ia3"]}, {}))
    assert len([key for key in attached.parameters if "heads.classify.out.weight" in key]) == 2


def test_a_parameter_that_two_members_of_a_stack_train_is_one():
    net = build("our gpt2")
    attached = attach(anatomy(net), made([{"kind": "freeze", "blocks": "last 1"}, "bitfit"], {}))
    names = [key.partition(".")[2] for key in attached.parameters]
    assert len(names) == len(set(names))
    shake(attached.parameters)
    want = logits(net)
    logits(net).square().mean().backward()
    assert all(p.grad is not None for p in attached.parameters.values())
    assert merge(attached.anatomy) < 1e-5
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)


# In a run, and on the command line


def weights(folder: Path) -> dict[str, Tensor]:
    return {f"{path.parent.name}/{key}": value for path in sorted(folder.rglob("*.safetensors")) for key, value in load_file(path).items()}


@pytest.mark.parametrize(
    "tuning",
    [
        [LORA | {"dropout": 0.1}, PROMPT],
        [PREFIX, {"average": [LORA, "ia3"]}],
        {"parallel": [LORA, ["ia3", PROMPT]]},
        [{"split": [LORA, "ia3"], "lengths": [5]}, {"kind": "adalora", "rank": 3, "target": 2, "roles": ["o"]}],
        {"fuse": [NARROW, NARROW]},
    ],
    ids=["stack", "average", "parallel", "split with adalora", "fuse"],
)
def test_a_run_resumed_equals_the_uninterrupted_one_to_the_bit(tuning: Any, tmp_path: Path):
    config = Run.from_yaml(
        write_run(
            tmp_path, tuning=[tuning] if isinstance(tuning, dict) else tuning, training={"steps": 4, "save_every": 2, "keep": 9}, samples=1
        )
    )
    result = run(config)
    assert result.history is not None and result.history.after["loss"] < result.history.before["loss"]
    straight = weights(tmp_path / "out" / "adapter")
    assert len(straight) > 4
    run(config, resume=tmp_path / "out" / "checkpoints" / "step-2")
    again = weights(tmp_path / "out" / "adapter")
    assert straight.keys() == again.keys() and all(torch.equal(value, again[key]) for key, value in straight.items())
    described = Run.from_yaml(tmp_path / "out" / "config.yaml")
    assert described.settings()["tuning"] == config.settings()["tuning"]


def command(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, words)))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as a folder."""
    folder = tmp_path_factory.mktemp("base")
    tiny_chat().save(folder)
    return folder


def artefact(base: Path, folder: Path, method: Any) -> Path:
    model = luthier.load(base)
    shake(luthier.tune(model, method).parameters, 0.3)
    model.save_adapter(folder)
    return folder


def test_generate_evaluate_and_export_take_the_folder(base: Path, tmp_path: Path):
    folder = artefact(base, tmp_path / "one", [LORA, PROMPT])
    told = [command("generate", source, *more, "--prompt", "lute", "--max-tokens", 4, "--temperature", 0) for source, more in [(folder, ()), (base, ("--adapter", folder)), (base, ())]]  # fmt: skip
    assert told[0] == told[1] != told[2] and told[0][0] == 0
    rows = Path(values(tmp_path)["data"]["path"])
    code, said = command("evaluate", base, "--questions", rows, "--adapter", folder)
    assert code == 0 and "before" in said, said
    code, said = command("export", base, tmp_path / "copy", "--adapter", folder)
    assert code == 0, said
    assert all(torch.equal(value, weights(folder)[key]) for key, value in weights(tmp_path / "copy").items())
    code, said = command("export", base, tmp_path / "merged", "--adapter", folder, "--merge")
    assert code == 2 and "Prompt around embed.token (of default_prompt) cannot be merged" in said and not (tmp_path / "merged").exists()
    both = artefact(base, tmp_path / "both", [LORA, "ia3"])
    code, said = command("export", base, tmp_path / "merged", "--adapter", both, "--merge")
    assert code == 0 and "the largest difference of a logit" in said
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(luthier.load(tmp_path / "merged").logits(ids), luthier.load(base, both).logits(ids), rtol=0, atol=1e-4)


def test_chat_talks_with_the_folder_and_names_the_members_of_parallel_ones(base: Path, tmp_path: Path):
    folder = artefact(base, tmp_path / "one", [LORA, PROMPT])
    talk = "hello\n/compare\n/adapter off\n/quit\n"
    result = CliRunner().invoke(app, ["chat", str(base), "--adapter", str(folder), "--max-tokens", "3", "--temperature", "0"], input=talk)
    assert result.exit_code == 0 and f"[{folder}]" in result.output and "[base]" in result.output, result.output
    side = artefact(base, tmp_path / "two", {"parallel": [LORA, PROMPT]})
    code, said = command("generate", base, "--adapter", side, "--prompt", "lute", "--max-tokens", 3, "--temperature", 0, "--json")
    assert code == 0 and len(said.strip().splitlines()) == 2
    result = CliRunner().invoke(app, ["chat", str(base), "--adapter", str(side), "--max-tokens", "3"], input="hello\n")
    assert "is parallel: each of its members runs for itself; put one of them to work: chat0_lora, chat0_prompt" in result.output


def test_a_composition_is_given_from_python_and_counts_its_parameters():
    model = tiny_chat()
    attached = luthier.tune(model, [LORA, PROMPT])
    assert list(attached.members) == ["lora", "prompt"] and model.anatomy.active == ("default",)
    assert sum(p.numel() for p in attached.parameters.values()) == sum(
        p.numel() for each in attached.members.values() for p in each.parameters.values()
    )
    second = luthier.tune(tiny_chat(), [LORA])
    assert not second.members  # a list of one is that one


# What cannot be


REFUSED: list[tuple[Any, str]] = [
    ([LORA, "full"], "full takes the whole model, and adapters are on it"),
    (["full", LORA], "full takes the whole model, so it cannot be one of several methods"),
    ([], "stack needs 1 members at least"),
    ({"average": [LORA]}, "average needs 2 members at least, not 1"),
    ({"average": [LORA, "ia3"], "weights": [1.0]}, "average has 2 members and 1 weights; give one weight for each"),
    ({"average": [LORA, PROMPT]}, "prompt adds tokens or keys to the text: put it in a stack around"),
    ({"average": [LORA, PREFIX]}, "prefix adds tokens or keys to the text: put it in a stack around"),
    ({"average": [LORA, {"parallel": [LORA, "ia3"]}]}, "parallel holds a parallel: put the parallel outside"),
    ({"fuse": [LORA, {"split": [LORA, "ia3"], "lengths": [2]}]}, "split holds a split: put the split outside"),
    ({"fuse": [NARROW, "bitfit"]}, "bitfit adds nothing, it gives the model's parameters other values: average it"),
    ({"fuse": [NARROW, {"kind": "adapter", "width": 4}]}, "cannot be fused; train adapters with norms: false"),
    ({"fuse": [{"kind": "mad_x"}, NARROW]}, "embed.*: what an adapter makes of the embedding cannot be fused; .*invertible: false"),
    ({"fuse": [{"kind": "lora", "roles": ["q", "embed"], "rank": 2}, LORA]}, "what an adapter makes of the embedding cannot be fused"),
    ({"split": [LORA, "ia3"], "lengths": [1, 2, 3]}, "split has 2 members and the lengths 1, 2, 3"),
    ({"split": [LORA, "ia3"], "lengths": [0]}, "split has 2 members and the lengths 0"),
    ({"split": [LORA, PROMPT], "lengths": [2]}, "virtual tokens stand before whole texts: put them in a stack around it"),
    ([{"split": [LORA, "ia3"], "lengths": [2]}, {"split": [LORA, "ia3"], "lengths": [3]}], "a stack holds two splits, and a text is split once"),
    (["ia3", {"kind": "lora", "dora": True, "roles": ["k"]}], "default_lora .dora. takes the norm of the model's own weight, which default_ia3 changes"),
    ({"kinds": "lora"}, "needs the key 'kind' or one of stack, fuse, average, parallel, split"),
]  # fmt: skip


@pytest.mark.parametrize("method, words", REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_what_cannot_be_is_one_clear_sentence_and_leaves_the_model(method: Any, words: str):
    net = build("our gpt2").requires_grad_(False)
    body, before = anatomy(net), logits(net)
    with pytest.raises(ValueError, match=words):
        attach(body, made(method, {}) if not isinstance(method, dict) or "kinds" not in method else luthier.run.make("tuning", method))
    assert not body.adapters and not body.arounds() and not body.switch.named
    torch.testing.assert_close(logits(net), before, rtol=0, atol=0)


def test_lengths_that_do_not_add_up_to_the_text_are_refused_and_the_model_stays_usable():
    net = build("our gpt2")
    shake(attach(anatomy(net), made({"split": [LORA, "ia3"], "lengths": [3, 5]}, {})).parameters)
    want = logits(net)
    with pytest.raises(ValueError, match="a split into 8 tokens in all does not fit a text of 6; leave the last length out for the rest"):
        net(tokens()[:, :6])
    torch.testing.assert_close(logits(net), want, rtol=0, atol=0)


def test_a_split_is_refused_where_a_text_is_not_one():
    for net, words in ((build("our t5"), "this model reads two"), (with_head(), "a head that reads the whole text is nobody's")):
        with pytest.raises(ValueError, match=words):
            attach(anatomy(net), made({"split": [LORA, "ia3"], "lengths": [2]}, {}))
        assert not anatomy(net).adapters


def test_parts_of_one_parameter_are_refused():
    """One trains rows of a fused projection, the other all of it."""
    with pytest.raises(ValueError, match="default_freeze and default_bitfit train different parts of .*c_attn.bias"):
        attach(anatomy(build("gpt2")), made([{"kind": "freeze", "roles": ["q"]}, "bitfit"], {}))


def test_a_quantised_base_is_plain_again_where_a_later_member_fails():
    net = build("our llama").requires_grad_(False)
    before = logits(net)
    with pytest.raises(ValueError, match="no role called 'kq'"):
        attach(anatomy(net), made([{"kind": "qlora", "rank": 2}, {"kind": "lora", "roles": ["kq"]}], {}))
    torch.testing.assert_close(logits(net), before, rtol=0, atol=0)


def test_a_folder_without_one_of_its_members_is_refused(tmp_path: Path):
    _, attached = start("our gpt2", "lora and prompt")
    attached.save(tmp_path / "one")
    (tmp_path / "one" / "prompt").rename(tmp_path / "elsewhere")
    again = build("our gpt2")
    with pytest.raises(FileNotFoundError, match="composition.json names prompt, and there is no such folder in it"):
        read(anatomy(again), tmp_path / "one")
    (tmp_path / "elsewhere").rename(tmp_path / "one" / "prompt")
    with pytest.raises(ValueError, match="of another shape|is for another model"):
        read(anatomy(build("our llama")), tmp_path / "one")
    assert not anatomy(again).adapters
    with pytest.raises(ValueError, match="an adapter called 'default' already"):
        attach(attached.anatomy, made([LORA, "ia3"], {}))

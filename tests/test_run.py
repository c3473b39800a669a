"""A run from YAML to result: what lies in its folder, going on, what is refused."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from luthier.config import RunFailed
from luthier.run import Run, prepare, run
from luthier.training import checkpoint
from tinyrun import chats, write_rows, write_run


def tiny(folder: Path, **changes: Any) -> Run:
    return Run.from_yaml(write_run(folder, **changes))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_is_the_whole_story(tmp_path: Path) -> None:
    result = run(tiny(tmp_path, evaluation=["perplexity"], training={"steps": 20, "evaluate_every": 10}))
    folder = tmp_path / "out"
    assert result.folder == folder
    assert result.path == folder / "adapter"
    names = {"config.yaml", "manifest.json", "metrics.jsonl", "checkpoints", "adapter", "predictions.jsonl", "result.json", "report.html"}
    assert names == {path.name for path in folder.iterdir()}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["training"]["betas"] == [0.9, 0.999]
    assert config["tuning"]["kind"] == "lora"
    assert config["tuning"]["alpha"] == 16.0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["versions"]) >= {"luthier", "torch", "python"}
    assert len(manifest["data"][str(tmp_path / "train.jsonl")]) == len(manifest["tokenizer"]) == len(manifest["template"]) == 64
    found = json.loads((folder / "result.json").read_text())
    assert found["steps"] == 20
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["after"]["perplexity"] == pytest.approx(math.exp(found["after"]["loss"]))
    assert [line["step"] for line in lines(folder)] == list(range(21))
    assert [line["step"] for line in lines(folder) if "held_out" in line] == [0, 10, 20]


def test_the_config_of_a_run_is_a_run_file_that_gives_the_same_weights(tmp_path: Path) -> None:
    run(tiny(tmp_path))
    run(Run.from_yaml(tmp_path / "out" / "config.yaml", [f"output={tmp_path / 'again'}"]))
    assert same(adapter(tmp_path / "out"), adapter(tmp_path / "again"))


def test_the_held_out_loss_weighs_every_learnt_token_alike(tmp_path: Path) -> None:
    """Against the mean of transformers' losses over single rows, each weighted with its learnt tokens."""
    import transformers

    config = tiny(tmp_path, training={"steps": 1, "rate": 0.0})
    ready = prepare(config)
    ready.model.save(tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    nats, labels = 0.0, 0
    assert ready.model.template is not None
    assert ready.model.tokenizer is not None
    for row in ready.stream.held_out:
        text, ranges = ready.model.template.spans(row["messages"])
        ids, offsets = ready.model.tokenizer.spans(text)
        learnt = [any(start <= a and b <= stop for start, stop in ranges) for a, b in offsets]
        target = torch.tensor([[token if keep else -100 for token, keep in zip(ids, learnt, strict=True)]])
        with torch.no_grad():
            nats += float(theirs(torch.tensor([ids]), labels=target).loss) * sum(learnt)
        labels += sum(learnt)
    history = run(config).history
    assert history is not None
    assert history.before is not None
    assert history.before["loss"] == pytest.approx(nats / labels, rel=1e-5)


@pytest.mark.parametrize(
    "training",
    [{"ema": 0.9}, {"precision": "bf16", "recompute": True}, {"optimizer": "adafactor", "tokens": 150, "rows": None}],
    ids=["ema", "bf16", "adafactor"],
)
def test_a_run_resumed_in_mid_epoch_equals_the_uninterrupted_one_to_the_bit(training: dict, tmp_path: Path) -> None:
    """Accumulation, dropout, packing ahead of the step: all of it goes on where it was."""
    model = {"dropout": 0.1}
    config = tiny(tmp_path, model=model, training={"steps": 14, "save_every": 3, "keep": 9, **training})
    run(config)
    straight = adapter(tmp_path / "out")
    for step in (3, 12):
        with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 15, "lo')  # torn by a kill
        run(config, resume=tmp_path / "out" / "checkpoints" / f"step-{step}")
        assert same(straight, adapter(tmp_path / "out"))
        assert [line["step"] for line in lines(tmp_path / "out")] == list(range(15))


def test_more_steps_go_on_from_a_finished_run(tmp_path: Path) -> None:
    schedule = {"schedule": "constant"}
    run(tiny(tmp_path, training={"steps": 4, **schedule}))
    run(tiny(tmp_path, training={"steps": 9, **schedule}), resume="auto")
    grown = adapter(tmp_path / "out")
    run(tiny(tmp_path, training={"steps": 9, **schedule}, output=str(tmp_path / "straight")))
    assert same(grown, adapter(tmp_path / "straight"))
    assert [line["step"] for line in lines(tmp_path / "out")] == list(range(10))


def test_auto_begins_where_there_is_nothing_yet_and_after_a_kill_before_the_first_checkpoint(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run(config, resume="auto")
    straight = adapter(tmp_path / "out")
    for path in (tmp_path / "out" / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run(config, resume="auto")
    assert same(straight, adapter(tmp_path / "out"))
    assert [line["step"] for line in lines(tmp_path / "out")] == list(range(7))


def test_epochs_are_whole_passes_over_the_data(tmp_path: Path) -> None:
    result = run(tiny(tmp_path, training={"steps": None, "epochs": 2}))
    assert result.history is not None
    assert result.history.steps == 17  # 34 rows, 4 a step
    assert lines(tmp_path / "out")[-1]["epoch"] == pytest.approx(2.0)


def test_full_tuning_hands_over_a_model_that_transformers_loads(tmp_path: Path) -> None:
    import transformers

    result = run(tiny(tmp_path, tuning="full"))
    assert result.path == tmp_path / "out" / "model"
    assert result.trainable == result.parameters
    from luthier.sources.load import load_model

    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = load_model(tmp_path / "out").logits(ids)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_run_can_start_from_the_adapter_of_another(tmp_path: Path) -> None:
    first = run(tiny(tmp_path, tuning="full", output=str(tmp_path / "base")))
    second = run(tiny(tmp_path, model=str(first.path), output=str(tmp_path / "second")))
    third = run(tiny(tmp_path, model=str(tmp_path / "second"), output=str(tmp_path / "third")))
    assert second.history is not None
    assert second.history.after is not None
    assert third.history is not None
    assert third.history.before is not None
    assert third.history.before["loss"] == pytest.approx(second.history.after["loss"], rel=1e-5)


def test_a_new_head_trains_and_is_handed_over(tmp_path: Path) -> None:
    rows = [{"text": words["messages"][0]["content"], "label": "long" if i % 2 else "short"} for i, words in enumerate(chats())]
    data = {"path": str(write_rows(tmp_path / "labels.jsonl", rows))}
    run(tiny(tmp_path, data=data, objective={"kind": "classify"}, evaluation=["accuracy"]))
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert 0 <= found["after"]["accuracy"] <= 1
    last = checkpoint.newest(tmp_path / "out" / "checkpoints")
    assert last is not None
    assert any("classify" in name for name in checkpoint.read(last).tensors["trainable"])


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run(tiny(tmp_path), dry_run=True)
    assert result.history is None
    assert result.trainable > 0
    assert not (tmp_path / "out").exists()


# What is refused


def test_a_folder_that_is_not_empty_is_refused_unless_resumed(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out is not empty; go on there with --resume auto, or choose another output"):
        run(config)
    with pytest.raises(FileNotFoundError, match=r"out is not the folder of a run \(config.yaml is missing\)"):
        run(config, resume="auto")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_resume_with_other_settings_names_each_that_differs(tmp_path: Path) -> None:
    run(tiny(tmp_path))
    changed = tiny(tmp_path, training={"steps": 8, "rate": 0.02, "keep": 1}, tuning={"rank": 4})
    with pytest.raises(ValueError, match=r"training.rate was 0.01 and is 0.02; tuning.rank was 2 and is 4. Change them back"):
        run(changed, resume="auto")


@pytest.mark.parametrize("name", ["cuda:77", "toaster", "meta"])
def test_a_device_that_is_not_here_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"device={name} is not here .*; take cpu or auto"):
        run(Run.from_yaml(write_run(tmp_path, device=name)))
    assert not (tmp_path / "out").exists()


def test_a_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    run(tiny(tmp_path))
    write_rows(tmp_path / "train.jsonl", list(reversed(chats())))
    with pytest.raises(ValueError, match=r"manifest.json: the data changed since the run began; put it back"):
        run(tiny(tmp_path), resume="auto")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tiny(tmp_path))
    other = tiny(tmp_path, output=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"step-6 is not a checkpoint of this run; they lie in .*other/checkpoints"):
        run(other, resume=tmp_path / "out" / "checkpoints" / "step-6")
    with pytest.raises(FileNotFoundError, match=r"step-5: no such checkpoint; --resume auto takes the newest"):
        run(tiny(tmp_path), resume=tmp_path / "out" / "checkpoints" / "step-5")


@pytest.mark.parametrize("changes", [{"evaluation": ["perplexity"]}, {"training": {"evaluate_every": 2}}, {"training": {"result": "best"}}])
def test_what_needs_held_out_rows_says_so(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs held-out rows, and there are none; set data.held_out"):
        run(tiny(tmp_path, data={"held_out": 0}, **changes))
    assert not (tmp_path / "out").exists()


def test_a_run_whose_loss_is_no_number_fails_and_keeps_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.objectives.chat import Chat

    calls, loss = [0], Chat.loss

    def poisoned(self: Chat, *inputs: Any) -> dict[str, Any]:
        calls[0] += torch.is_grad_enabled()
        terms = loss(self, *inputs)
        return {name: replace(term, sum=term.sum * (math.nan if calls[0] == 30 else 1)) for name, term in terms.items()}

    monkeypatch.setattr(Chat, "loss", poisoned)
    with pytest.raises(RunFailed, match=r"step \d+: the term 'lm' of the loss is nan; the last good checkpoint is .*/step-\d+;"):
        run(tiny(tmp_path, training={"steps": 40, "save_every": 1}))
    last = checkpoint.newest(tmp_path / "out" / "checkpoints")
    assert last is not None
    checkpoint.read(last)
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_disk_that_is_full_at_the_end_keeps_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.tuning._attached import Attached

    def full(self: Attached, directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    config = tiny(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Attached, "save", full)
        with pytest.raises(
            RunFailed, match=r"cannot write .*adapter: No space left on device; the weights are whole in .*checkpoints; make"
        ):
            run(config)
    run(config, resume="auto")
    again = adapter(tmp_path / "out")
    run(tiny(tmp_path, output=str(tmp_path / "straight")))
    assert same(again, adapter(tmp_path / "straight"))


def test_questions_are_answered_before_and_after(tmp_path: Path) -> None:
    run(tiny(tmp_path, samples=2, evaluation=["perplexity"], training={"precision": "bf16"}))
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert len(samples) == 2
    assert all(set(sample) == {"prompt", "reference", "before", "after"} for sample in samples)
    assert all(sample["prompt"][-1]["role"] == "user" for sample in samples)


def test_importing_run_and_reading_a_run_file_needs_no_torch(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    code = (
        f"import sys; from luthier.run import Run; Run.from_yaml({str(path)!r}, ['training.rate=1e-4']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_writes_a_checkpoint_and_the_resumed_run_is_the_same(tmp_path: Path) -> None:
    straight, stopped = (write_run(tmp_path, output=str(tmp_path / name), training={"steps": 200}) for name in ("straight", "stopped"))
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(stopped)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    while "step 10/" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130
    assert "holds it; go on with --resume auto" in told
    subprocess.run([*command, "--resume", "auto"], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    run(Run.from_yaml(straight, [f"output={tmp_path / 'straight'}"]))
    assert same(adapter(tmp_path / "straight"), adapter(tmp_path / "stopped"))

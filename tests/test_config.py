"""Run files: every mistake at once, with its line and a suggestion; nothing heavy is imported to say so."""

import dataclasses
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from luthier import config

SETTINGS = """
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional
from luthier.lookup import Shelf

Roles = tuple[str, ...]

@dataclass(frozen=True)
class Part:
    path: str
    weight: float | None = None

@dataclass(frozen=True)
class Section:
    steps: int | None = None
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    roles: Roles = ("q",)
    ranks: dict[str, int] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    shuffle: bool = True
    files: str | list[str | Part] = "x"
    old: "Optional[int]" = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"training.rate={self.rate} must not be negative")

@dataclass(frozen=True)
class Settings:
    training: Section
    output: str
    model: Annotated[str | dict[str, Any], Shelf("models", key="arch", bare=False, extra=("tokenizer",))] = "somewhere"
    evaluation: Annotated[list[Any], Shelf("evaluation", many=True)] = field(default_factory=list)
    tuning: Annotated[Any, Shelf("tuning", many=True, nest="tuning/_composition.py")] = "full"
    seed: int = 0
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("settings") / "settings_under_test.py"
    path.write_text(SETTINGS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Case:
    """Writes a run file and reads it as Settings."""

    def __init__(self, folder: Path, kind: Any):
        self.path, self.kind = folder / "run.yaml", kind

    def load(self, text: str, *overrides: str) -> Any:
        self.path.write_text(text, encoding="utf-8")
        return config.load(self.kind, self.path, overrides)

    def errors(self, text: str, *overrides: str) -> list[str]:
        with pytest.raises(ValueError) as error:
            self.load(text, *overrides)
        return [line.replace(f"{self.path}", "run.yaml") for line in str(error.value).splitlines()]


@pytest.fixture
def case(tmp_path: Path, settings: ModuleType) -> Case:
    return Case(tmp_path, settings.Settings)


GOOD = "output: here\ntraining:\n  rate: 1e-4\n"


def test_a_file_becomes_frozen_dataclasses(case: Case):
    found = case.load("output: here\ntraining: {rate: 1e-4, steps: 1e3, roles: [k, v], ranks: {k: 4}, files: [a, {path: b, weight: 2}]}")
    assert (found.training.rate, found.training.steps, found.training.roles, found.training.ranks) == (1e-4, 1000, ("k", "v"), {"k": 4})
    assert found.training.files == ["a", type(found.training.files[1])("b", 2.0)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.seed = 1


def test_all_mistakes_come_at_once_in_the_order_of_the_file(case: Case):
    text = """\
seed: zero
sead: 1
training:
  raet: 1
  steps: many
  betas: [0.9]
  roles: q
  precision: bf61
  ranks: {k: x}
  shuffle: no
  files: [{pth: b}]
  old: 1.5
model: {arch: lama}
evaluation: [acuracy, {kind: bleu, lowercse: true, tokens: 7}]
"""
    assert case.errors(text) == [
        "run.yaml:1: output is missing; it must be text",
        "run.yaml:1: seed must be a whole number, got 'zero'",
        "run.yaml:2: unknown key 'sead'; did you mean 'seed'?",
        "run.yaml:4: unknown key 'raet' in training; did you mean 'rate'?",
        "run.yaml:5: training.steps must be a whole number or nothing, got 'many'",
        "run.yaml:6: training.betas must have 2 entries, got 1",
        "run.yaml:7: training.roles must be a list (text, ...), got 'q'; write [q]",
        "run.yaml:8: training.precision must be one of 'fp32', 'bf16', got 'bf61'; did you mean 'bf16'?",
        "run.yaml:9: training.ranks.k must be a whole number, got 'x'",
        "run.yaml:10: training.shuffle must be true or false, got 'no'",
        "run.yaml:11: unknown key 'pth' in training.files.0; did you mean 'path'?",
        "run.yaml:11: training.files.0.path is missing; it must be text",
        "run.yaml:12: training.old must be a whole number or nothing, got 1.5",
        "run.yaml:13: model.arch: no model called 'lama'; did you mean 'llama'?",
        "run.yaml:14: evaluation.0: no evaluation called 'acuracy'; did you mean 'accuracy'?",
        "run.yaml:14: unknown key 'lowercse' in evaluation.1; did you mean 'lowercase'?",
        *[f"run.yaml:14: evaluation.1.tokens must be {line}" for line in tokens_of_bleu()],
    ]


def tokens_of_bleu() -> list[str]:
    from luthier import lookup

    kind = next(field.type for field in lookup.describe("evaluation", "bleu").fields if field.name == "tokens")
    assert kind.startswith("Literal")
    return [f"one of {kind.removeprefix('Literal[').removesuffix(']')}, got 7"]


@pytest.mark.parametrize(
    "section, error",
    [
        ("tuning: {kind: loar}", "tuning.kind: no tuning called 'loar'; did you mean 'lora'?"),
        ("tuning: loar", "tuning: no tuning called 'loar'; did you mean 'lora'?"),
        ("tuning: {knd: lora}", "tuning needs the key 'kind': "),
        ("tuning: {kind: lora, rnak: 3}", "unknown key 'rnak' in tuning; did you mean 'rank'?"),
        ("tuning: [{kind: lora, rank: x}]", "tuning.0.rank must be a whole number, got 'x'"),
        ("tuning: {fuse: [{kind: lora, rank: x}, full]}", "tuning.fuse.0.rank must be a whole number, got 'x'"),
        ("tuning: 3", "tuning must be a section with 'kind', got 3"),
        ("model: {arch: llama, widht: 3, tokenizer: x}", "unknown key 'widht' in model; did you mean 'width'?"),
        ("model: {arch: llama, tokeniser: x}", "unknown key 'tokeniser' in model; did you mean 'tokenizer'?"),
        ("training: 3", "training must be a section (key: value), got 3"),
        ("seed: true", "seed must be a whole number, got True"),
        ("seed:", "seed must be a whole number, got nothing"),
        ("training: {files: [3]}", "training.files.0 must be text or a section (key: value), got 3"),
    ],
)
def test_a_mistake_inside_a_section_is_found(case: Case, section: str, error: str):
    rest = "" if section.startswith("training") else "\ntraining: {}"
    (found,) = case.errors(f"output: here\n{section}{rest}")
    assert found.startswith(f"run.yaml:2: {error}")


def test_what_a_dataclass_refuses_itself_comes_with_its_line(case: Case):
    assert case.errors("output: here\ntraining:\n  rate: -1") == ["run.yaml:2: training.rate=-1.0 must not be negative"]
    assert case.errors("output: here\ntraining:\n  rate: .nan") == ["run.yaml:3: training.rate must be a finite number, not nan"]


@pytest.mark.parametrize(
    "text, error",
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: a stands twice, first in line 1; remove one"),
        ("a:\n  b: 1\n  b: 2", "run.yaml:3: a.b stands twice, first in line 2; remove one"),
        ("a: [1", "run.yaml:1: not YAML: "),
        ("a: 1\nb: c: d", "run.yaml:2: not YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1", "run.yaml:2: not YAML: "),
        ("- 1", "run.yaml:1: the file must be sections (key: value)"),
        ("? [a]\n: 1", "run.yaml:1: a key must be a plain word"),
        ("a: !!python/object/apply:os.system [ls]", "run.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"),
        ("a: \x00", "run.yaml: not YAML: "),
    ],
)
def test_what_is_not_a_run_file_is_refused_with_its_line(case: Case, text: str, error: str):
    assert case.errors(text)[0].startswith(error)


def test_an_empty_file_lacks_what_is_required(case: Case):
    assert [error.split(" is missing")[0] for error in case.errors("# nothing yet\n")] == ["run.yaml:1: training", "run.yaml:1: output"]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path, settings: ModuleType):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist; `luthier init .*nowhere\.yaml` writes an example"):
        config.load(settings.Settings, tmp_path / "nowhere.yaml")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        config.load(settings.Settings, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text"):
        config.load(settings.Settings, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "word, value",
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("1.5e+3", 1500.0), (".5", 0.5), ("5.", 5.0), ("-1e-4", -1e-4), ("1_000", 1000), ("0x10", 16),
        ("-3", -3), ("true", True), ("False", False), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("007", "007"), ("1.2.3", "1.2.3"),
        ("2024-01-01", "2024-01-01"), ("~", None), ("null", None), ("", None), ("'1e-4'", "1e-4"), ('"true"', "true"), ("1e", "1e"),
        ("e5", "e5"), ("-.inf", -math.inf),
    ],
)  # fmt: skip
def test_words_mean_what_yaml_1_2_says(tmp_path: Path, word: str, value: Any):
    (tmp_path / "a.yaml").write_text(f"a: {word}", encoding="utf-8")
    found = config.read_yaml(tmp_path / "a.yaml").values["a"]
    assert found == value and type(found) is type(value)


def test_overrides_are_read_as_yaml_and_reach_into_lists(case: Case):
    text = GOOD + "  files: [{path: a}, b]\nevaluation: [bleu]\n"
    overrides = ["training.rate=1e-2", "training.files.0.weight=3", "training.roles=[k, o]", "evaluation.1={kind: accuracy}", "seed=7"]
    found = case.load(text, *overrides)
    assert (found.training.rate, found.training.files[0].weight, found.training.roles, found.seed) == (1e-2, 3.0, ("k", "o"), 7)
    assert found.evaluation == ["bleu", {"kind": "accuracy"}]


def test_an_override_makes_the_section_it_needs(case: Case):
    assert case.load("output: x", "training.steps=3").training.steps == 3


@pytest.mark.parametrize(
    "override, error",
    [
        ("training.raet=1", "override training.raet=1: unknown key 'raet' in training; did you mean 'rate'?"),
        ("training.steps=x", "override training.steps=x: training.steps must be a whole number or nothing, got 'x'"),
        ("training", "override 'training' must look like training.rate=1e-4"),
        ("output.x=1", "override output.x=1: output is 'here', not a section"),
        ("evaluation.5=bleu", "override evaluation.5=bleu: evaluation is a list of 1, counted from 0; it has no entry '5'"),
        ("training.roles=[k", "override training.roles=[k"),
    ],
)
def test_a_wrong_override_is_named(case: Case, override: str, error: str):
    assert case.errors(GOOD + "evaluation: [bleu]\n", override)[0].startswith(error)


def test_an_override_mends_the_file(case: Case):
    assert case.load("output: here\ntraining: {rate: fast}", "training.rate=2").training.rate == 2.0


def test_from_python_the_same_mistakes_are_refused(settings: ModuleType):
    with pytest.raises(ValueError, match="unknown key 'raet' in Section; did you mean 'rate'"):
        config.build(settings.Section, {"raet": 1})
    with pytest.raises(ValueError, match="rate: Input should be a valid number.* got 'x'"):
        config.build(settings.Section, {"rate": "x"})
    with pytest.raises(ValueError, match="^rate must be a finite number, not inf$"):
        config.build(settings.Section, {"rate": math.inf})
    with pytest.raises(ValueError, match="output is missing"):
        config.build(settings.Settings, {"training": {}})
    with pytest.raises(ValueError, match="^training.rate=-1.0 must not be negative$"):
        config.build(settings.Section, {"rate": -1})


def test_a_plug_in_is_built_from_its_section():
    assert config.build_plug_in("evaluation", {"kind": "bleu", "lowercase": True}).lowercase is True
    assert config.build_plug_in("evaluation", "bleu").lowercase is False
    with pytest.raises(ValueError, match="needs the key 'kind', got lowercase"):
        config.build_plug_in("evaluation", {"lowercase": True})


def test_what_is_dumped_is_read_back_equal(tmp_path: Path, case: Case):
    found = case.load(GOOD)
    hard = {"words": ["1e-4", "no", "007", "true", "", "~", "a: b", "中文", "12:30", "1_0"], "numbers": [1e-4, 1e30, 3, True, None, 0.1]}
    path = tmp_path / "again.yaml"
    path.write_text(config.dump(found), encoding="utf-8")
    assert config.load(type(found), path) == found
    path.write_text(config.dump(hard), encoding="utf-8")
    assert config.read_yaml(path).values == hard
    assert yaml.safe_load(config.dump(hard)) == hard  # by any YAML 1.1 reader too


def test_a_mistake_is_told_without_torch_and_without_pydantic(tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("tuning: {kind: loar}\nmodel: {arch: llama, widht: 3}\n", encoding="utf-8")
    (tmp_path / "settings_under_test.py").write_text(SETTINGS, encoding="utf-8")
    program = """
import sys
from luthier import config
from settings_under_test import Settings
try:
    config.load(Settings, "bad.yaml")
except ValueError as error:
    print(len(str(error).splitlines()), "torch" in sys.modules, "pydantic" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["4", "False", "False"]

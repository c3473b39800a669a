"""Plug-ins are found by file name and described without being imported."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier import declaration, lookup
from luthier.declaration import read

PLUG_IN = '''
"""Mine: a method. Doe et al. 2020, arXiv:2001.00001, eq. 3.

More words.
"""
import does_not_exist
from dataclasses import dataclass, field
from typing import ClassVar

@dataclass(frozen=True)
class _Part:
    a: int

@dataclass(frozen=True)
class Mine:
    """Mine."""
    rank: int  # of the update (1 to 8)
    roles: tuple[str, ...] = ("q", "v")
    rates: dict[str, float] = field(default_factory=dict)  # by role: "#1 first"
    alpha: float = field(default=2.0)
    width: int = 4 * 8
    verified: ClassVar[str] = "the formula"
    presets: ClassVar[dict] = {"small": {"rank": 2}}
    computed: ClassVar[int] = len("abc")

    def attach(self) -> None: ...
'''.strip()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Path]:
    """A user's folder of plug-ins, taken off the shelves again afterwards."""
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "mine.py").write_text(PLUG_IN, encoding="utf-8")
    (tmp_path / "tuning" / "_part.py").write_text("", encoding="utf-8")
    import luthier.tuning as package

    before = list(package.__path__)
    yield tmp_path
    package.__path__[:] = before


def test_a_plug_in_is_the_one_public_dataclass_of_its_file():
    assert lookup.lookup("evaluation", "accuracy").__name__ == "Accuracy"


def test_parts_and_the_package_itself_are_no_plug_ins():
    assert "accuracy" in lookup.names("evaluation")
    assert not [name for name in lookup.names("evaluation") if name.startswith("_")]


@pytest.mark.parametrize(
    "shelf_name, name, sentence",
    [
        ("evaluation", "acuracy", r"no evaluation called 'acuracy'; did you mean 'accuracy'\?"),
        ("models", "lama", r"no model called 'lama'; did you mean 'llama'\?"),
        ("models", "zzz", r"no model called 'zzz'; there are .*bert, .*llama"),
        ("tunning", "lora", r"no shelf called 'tunning'; did you mean 'tuning'\?"),
    ],
)
def test_a_typo_gets_a_suggestion(shelf_name: str, name: str, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        lookup.lookup(shelf_name, name)


def test_a_file_is_described_without_importing_it(shelf: Path):
    lookup.add_folder(shelf)
    found = lookup.describe("tuning", "mine")
    assert (found.name, found.cls, found.title) == ("mine", "Mine", "Mine: a method")
    assert found.paper == "Doe et al. 2020, arXiv:2001.00001, eq. 3"
    assert found.file == shelf / "tuning" / "mine.py"
    assert found.constants == {"verified": "the formula", "presets": {"small": {"rank": 2}}}
    assert [(f.name, f.type, f.default, f.required, f.doc) for f in found.fields] == [
        ("rank", "int", None, True, "of the update (1 to 8)"),
        ("roles", "tuple[str, ...]", ("q", "v"), False, ""),
        ("rates", "dict[str, float]", "dict()", False, 'by role: "#1 first"'),
        ("alpha", "float", 2.0, False, ""),
        ("width", "int", "4 * 8", False, ""),
    ]


def test_a_users_folder_stands_on_the_shelves(shelf: Path):
    (shelf / "tuning" / "mine.py").write_text(
        PLUG_IN.replace("import does_not_exist", "from luthier.tuning import _part"), encoding="utf-8"
    )
    lookup.add_folder(shelf)
    lookup.add_folder(shelf)  # twice is once
    assert lookup.names("tuning").count("mine") == 1
    assert lookup.lookup("tuning", "mine").__name__ == "Mine"


def test_a_users_plug_in_may_not_hide_one_of_ours(tmp_path: Path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "accuracy.py").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="'accuracy' stands on the shelf 'evaluation' already"):
        lookup.add_folder(tmp_path)


def test_a_folder_without_shelves_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="needs a sub-folder called models or"):
        lookup.add_folder(tmp_path)


@pytest.mark.parametrize(
    "source, sentence", [("x = 1", "this file has 0"), (PLUG_IN.replace("_Part", "Part"), "has 2"), ("def", ":1: not Python")]
)
def test_a_file_that_is_no_plug_in_is_refused(shelf: Path, source: str, sentence: str):
    (shelf / "tuning" / "mine.py").write_text(source, encoding="utf-8")
    lookup.add_folder(shelf)
    with pytest.raises(ValueError, match=rf"mine\.py.*{sentence}"):
        lookup.describe("tuning", "mine")


@pytest.mark.parametrize(
    "first, title, paper",
    [
        (
            "LoRA: low rank. Hu et al. 2021, arXiv:2106.09685, section 4.1.",
            "LoRA: low rank",
            "Hu et al. 2021, arXiv:2106.09685, section 4.1",
        ),
        ("Speed. J. Hu et al. NAACL 2021.", "Speed", "J. Hu et al. NAACL 2021"),
        ("BLEU. Papineni 2002. Smoothed. More.", "BLEU", "Papineni 2002. Smoothed. More"),
        ("Plain words, nothing cited.", "Plain words, nothing cited", ""),
        ("GPT-2. Radford et al. 2019.\n\narXiv:1111.22222", "GPT-2", "Radford et al. 2019"),
        ("A method.\n\nSee arXiv:1111.22222.", "A method", "arXiv:1111.22222"),
    ],
)
def test_the_first_line_is_title_and_paper(tmp_path: Path, first: str, title: str, paper: str):
    path = tmp_path / "one.py"
    path.write_text(f'"""{first}"""\nfrom dataclasses import dataclass\n@dataclass\nclass One:\n    pass\n', encoding="utf-8")
    found = read(path)
    assert (found.title, found.paper) == (title, paper)


@pytest.mark.parametrize("shelf_name", lookup.SHELVES)
def test_what_the_source_says_is_what_the_import_gives(shelf_name: str):
    """Names, order and literal defaults of the fields, for every plug-in there is."""
    import dataclasses

    for name in lookup.names(shelf_name):
        read, real = lookup.describe(shelf_name, name), lookup.lookup(shelf_name, name)
        assert read.cls == real.__name__
        fields = {field.name: field for field in dataclasses.fields(real)}
        assert [field.name for field in read.fields] == list(fields)
        for field in read.fields:
            assert field.required == (fields[field.name].default is fields[field.name].default_factory is dataclasses.MISSING)
            if fields[field.name].default is not dataclasses.MISSING and not isinstance(field.default, str):
                assert field.default == fields[field.name].default
        for constant, value in read.constants.items():
            assert getattr(real, constant) == value


def test_describing_everything_imports_no_torch():
    program = """
import sys
from luthier import declaration, lookup
for shelf in lookup.SHELVES:
    for name in lookup.names(shelf):
        lookup.describe(shelf, name)
print("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_source_of_any_layout_is_read(tmp_path: Path):
    (tmp_path / "odd.py").write_text(
        '"""Odd. Luthier 2020, arXiv:2001.00001."""\nfrom dataclasses import dataclass\n@dataclass\nclass Odd:\n    first: int = 1  # one\n'
        '    def method(\n        self, x=(\n1,\n    )\n    ):\n        text = """\nclass Other:\n    def\n"""\n        return text\n    second: int = 2  # two\n'
    )
    found = declaration.read(tmp_path / "odd.py")
    assert [(f.name, f.default, f.doc) for f in found.fields] == [("first", 1, "one"), ("second", 2, "two")]

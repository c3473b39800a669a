"""The drawing of an anatomy: well-formed, every role in it, norms where the blocks have them."""

from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.drawing import draw, shares
from luthier.sources.describe import describe

SVG = "{http://www.w3.org/2000/svg}"


def heights(svg: str) -> dict[str, float]:
    """Role -> how far down its box's text stands."""
    texts = ElementTree.fromstring(svg).iter(f"{SVG}text")
    return {(text.text or "").split()[0]: float(text.attrib["y"]) for text in texts if text.attrib.get("text-anchor") == "middle"}


@pytest.mark.parametrize("preset", ["smollm2-135m", "bert-base-uncased", "gpt2"])
def test_every_role_has_its_box_and_its_bar(preset: str):
    found = describe(preset)
    svg = draw(found)
    roles = found["stacks"]["encoder" if preset.startswith("bert") else "decoder"]["roles"]
    assert set(roles) <= set(heights(svg))
    labels = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert all(role in labels for role in roles)
    assert sum(count for _, _, count in shares(found)) == found["parameters"]


def test_norms_stand_before_the_sublayer_or_after_the_sum():
    before, after = heights(draw(describe("smollm2-135m"))), heights(draw(describe("bert-base-uncased")))
    assert before["attn_norm"] > before["q"] > before["o"] > before["ffn_norm"] > before["up"] > before["down"]  # from the bottom up
    assert after["q"] > after["o"] > after["attn_norm"] > after["up"] > after["down"] > after["ffn_norm"]


def test_a_name_from_outside_is_only_text():
    svg = draw(describe("gpt2") | {"source": "<script>alert(1)</script>&"})
    assert "<script" not in svg and ElementTree.fromstring(svg).tag == f"{SVG}svg"


def test_inspect_writes_the_drawing_and_refuses_another_kind_of_file(tmp_path):
    path = tmp_path / "gpt2.svg"
    assert CliRunner().invoke(app, ["inspect", "gpt2", "--svg", str(path)]).exit_code == 0
    assert path.read_text(encoding="utf-8") == draw(describe("gpt2"))
    result = CliRunner().invoke(app, ["inspect", "gpt2", "--svg", str(tmp_path / "gpt2.png")])
    assert result.exit_code == 2 and "gpt2.svg" in result.output

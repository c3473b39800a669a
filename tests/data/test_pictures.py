"""Pictures become the numbers that transformers' own processor makes of them."""

import pytest
import torch
from PIL import Image

from luthier.data import pictures
from luthier.data.pictures import VIT, check_pictures, read_pictures, varied


@pytest.fixture
def paths(tmp_path):
    """A picture of noise, wider than high, and a grey one."""
    noise = torch.randint(0, 256, (30, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    Image.new("L", (20, 20), 128).save(tmp_path / "grey.png")
    return [tmp_path / "noise.png", tmp_path / "grey.png"]


def test_they_equal_transformers_processor(paths):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    want = processor([Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read_pictures(paths, 16), want, atol=1e-5, rtol=0)


def test_grey_is_zero_in_vits_colours(paths):
    torch.testing.assert_close(read_pictures(paths[1:], 4, VIT), torch.full((1, 3, 4, 4), 2 * 128 / 255 - 1))


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png is no picture"):
        read_pictures([tmp_path / "a.png"], 4)


def test_a_file_is_decoded_once(paths, monkeypatch):
    opened = []
    monkeypatch.setattr("luthier.data.pictures._opened", lambda path, open=pictures._opened: opened.append(path) or open(path))
    first = read_pictures(paths, 6)
    assert torch.equal(read_pictures(paths[::-1], 6).flip(0), first)
    assert opened == [str(path) for path in paths]


def test_a_picture_cut_short_is_named(paths):
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[: len(data) // 2])
    check_pictures(paths)  # the beginning is whole
    with pytest.raises(ValueError, match=r"noise\.png: this picture cannot be decoded"):
        read_pictures(paths, 5)


def test_what_is_not_there_or_elsewhere_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no picture at .*b\.png; paths are relative to the folder of the data file"):
        check_pictures([tmp_path / "b.png"])
    with pytest.raises(ValueError, match="pictures are read from files; fetch this one first"):
        check_pictures(["https://example.org/b.png"])


def test_varied_pictures_are_moved_scaled_mirrored_and_tinted_within_bounds(paths):
    picture = torch.zeros(64, 1, 9, 9)
    picture[:, :, 4, 4] = 1.0
    torch.manual_seed(0)
    assert torch.allclose(varied(picture, 0.0), picture, atol=1e-6)  # the middle stays when mirrored
    lopsided = torch.zeros(400, 1, 9, 9)
    lopsided[:, :, 4, 6] = 1.0
    same = torch.isclose(varied(lopsided, 0.0), lopsided, atol=1e-6).all((1, 2, 3))
    assert 160 < same.sum() < 240
    flat = varied(torch.full((400, 3, 8, 8), 0.5), 0.2)
    assert torch.allclose(flat, flat[..., :1, :1].expand_as(flat), atol=1e-6)  # edges are drawn out, nothing black comes in
    shade = flat[:, 0, 0, 0]
    assert shade.min() >= 0.5 * 0.8 - 0.2 - 1e-6 and shade.max() <= 0.5 * 1.2 + 0.2 + 1e-6 and shade.std() > 0.05

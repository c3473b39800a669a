"""Pictures become the numbers that transformers' own processor makes of them."""

import pytest
import torch
from PIL import Image

from luthier.data.pictures import VIT, read_pictures


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

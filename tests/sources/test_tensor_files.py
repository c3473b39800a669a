"""safetensors files: written ones are read by others and the other way round; damage of any kind is named, not loaded."""

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from luthier.sources.tensor_files import Safetensors, write_safetensors

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7).to(torch.bfloat16),
    "odd": torch.arange(5, dtype=torch.uint8),
    "ids": torch.arange(4),
    "half": torch.randn(2, 3).half(),
    "empty": torch.zeros(0, 4),
    "turned": torch.randn(4, 6).T,
    "scalar": torch.tensor(2.5),
}


def equal(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return given.keys() == wanted.keys() and all(torch.equal(given[n], wanted[n]) and given[n].dtype == wanted[n].dtype for n in wanted)


def test_written_files_are_read_by_safetensors(tmp_path: Path):
    wanted = TENSORS
    write_safetensors(tmp_path / "m.safetensors", wanted, {"note": "x"})
    assert equal(safetensors.torch.load_file(tmp_path / "m.safetensors"), wanted)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["note"] == "x"


def test_files_of_safetensors_are_read(tmp_path: Path):
    wanted = {name: value.contiguous() for name, value in TENSORS.items()}
    safetensors.torch.save_file(wanted, tmp_path / "m.safetensors")
    assert equal(dict(Safetensors([tmp_path / "m.safetensors"])), wanted)


def test_several_files_are_one_mapping_and_a_name_stands_once(tmp_path: Path):
    write_safetensors(tmp_path / "1.safetensors", {"a": torch.ones(2)})
    write_safetensors(tmp_path / "2.safetensors", {"b": torch.zeros(2)})
    assert set(Safetensors([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])) == {"a", "b"}
    write_safetensors(tmp_path / "2.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"2.safetensors: the tensors a stand in 1.safetensors too"):
        Safetensors([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


def test_reading_makes_no_copy_and_writing_into_it_leaves_the_file_alone(tmp_path: Path):
    write_safetensors(tmp_path / "m.safetensors", {"a": torch.ones(1000)})
    first = Safetensors([tmp_path / "m.safetensors"])["a"]
    first.zero_()
    assert Safetensors([tmp_path / "m.safetensors"])["a"].sum() == 1000


def test_every_flipped_bit_of_a_file_of_ours_is_found(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, TENSORS)
    whole, generator = bytearray(path.read_bytes()), random.Random(0)
    told: list[str] = []
    bits = [(at, bit) for at in range(len(whole)) for bit in range(8)]
    for at, bit in [*((at, bit) for at in range(8) for bit in range(8)), *generator.sample(bits, 1500)]:
        whole[at] ^= 1 << bit
        path.write_bytes(whole)
        whole[at] ^= 1 << bit
        try:
            found = dict(Safetensors([path]))
        except ValueError as error:
            told.append(str(error))
        else:  # a letter of a name (the model then misses it), of the note, or the padding behind the header
            assert equal({n: v for n, v in found.items() if n in TENSORS}, {n: v for n, v in TENSORS.items() if n in found})
    assert len(told) > 1000
    assert all("m.safetensors" in sentence for sentence in told)


def test_a_file_cut_anywhere_is_found(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in TENSORS.items()}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"m\.safetensors is damaged or truncated"):
            Safetensors([path])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda h: h["b"].update(dtype="F31"), "tensor 'b' has the unknown type 'F31'"),
        (lambda h: h["b"].update(shape=[3, 6]), r"tensor 'b' of shape \(3, 6\) in F32 does not fit its 60 bytes"),
        (lambda h: h["b"].update(shape=[-3, -5]), "tensor 'b' of shape"),
        (lambda h: h["b"].pop("shape"), "the entry of tensor 'b' is not dtype, shape and data_offsets"),
        (lambda h: h["b"].update(data_offsets=[h["b"]["data_offsets"][0] + 4, h["b"]["data_offsets"][1] + 4]), "starts at byte"),
    ],
)
def test_a_header_that_contradicts_itself_names_the_tensor(change, sentence: str, tmp_path: Path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, TENSORS)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(ValueError, match=sentence):
        Safetensors([path])

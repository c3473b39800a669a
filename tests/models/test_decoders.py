"""What is special to the decoders around LLaMA: published sizes, fixtures of published code, both generations of config.json, ALiBi."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers.models.bloom.modeling_bloom import BloomGelu

sys.path.insert(0, str(Path(__file__).parent))
from families.plain import Config
from families.qwen import SIZES
from oracles import KINDS, gap, ours, reference, sample

from luthier.anatomy.anatomy import anatomy
from luthier.core.cache import Cache
from luthier.core.decode import Decoder, decodable
from luthier.core.generate import Sampling, generate_ids
from luthier.core.names import import_state
from luthier.core.scaling import DynamicNTK, Linear, Llama3, LongRoPE, YaRN
from luthier.models.baichuan import Baichuan
from luthier.models.bloom import Bloom
from luthier.models.llama import Llama
from luthier.models.qwen import Qwen
from luthier.sources.load import load_model
from luthier.sources.save import write_model
from luthier.tuning._tune import attach, made

COUNTS = {
    Llama: {
        "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
        "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
        "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496,
        "llama3.1-8b": 8_030_261_248, "llama3.1-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800,
        "llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824, "llama3.3-70b": 70_553_706_496,
        "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384, "tinyllama-1.1b": 1_100_048_384,
        "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.2": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552,
        "mistral-nemo-12b": 12_247_782_400,
        "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
        "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
        "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
        "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
    },
    Qwen: {"qwen-1.8b": 1_836_828_672, "qwen-7b": 7_721_324_544, "qwen-14b": 14_167_290_880, "qwen-72b": 72_287_920_128},
    Baichuan: {
        "baichuan-7b": 7_000_559_616, "baichuan-13b": 13_264_901_120, "baichuan2-7b": 7_505_973_248, "baichuan2-13b": 13_896_668_160,
    },
    Bloom: {
        "bloom-560m": 559_214_592, "bloom-1b1": 1_065_314_304, "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440,
        "bloom-7b1": 7_069_016_064, "bloom": 176_247_271_424, "belle-7b": 7_069_016_064,
    },
}  # fmt: skip


@pytest.mark.parametrize("arch", COUNTS)
def test_every_preset_has_the_published_number_of_parameters(arch):
    found = {}
    for preset, fields in arch.presets.items():
        layers = arch(**fields).layers
        with torch.device("meta"):
            one, two = (sum(p.numel() for p in arch(**(fields | {"layers": n})).build().parameters()) for n in (1, 2))
        found[preset] = one + (layers - 1) * (two - one)
    assert found == COUNTS[arch]


@pytest.mark.parametrize(
    ("arch", "preset", "config", "model"),
    [
        (Llama, "llama3.2-1b", hf.LlamaConfig, hf.LlamaForCausalLM),
        (Llama, "mistral-nemo-12b", hf.MistralConfig, hf.MistralForCausalLM),
        (Llama, "qwen2-7b", hf.Qwen2Config, hf.Qwen2ForCausalLM),
        (Llama, "qwen3-0.6b", hf.Qwen3Config, hf.Qwen3ForCausalLM),
        (Qwen, "qwen-1.8b", hf.Qwen2Config, hf.Qwen2ForCausalLM),
        (Baichuan, "baichuan-7b", hf.LlamaConfig, hf.LlamaForCausalLM),
        (Bloom, "bloom-560m", hf.BloomConfig, hf.BloomForCausalLM),
    ],
)
def test_transformers_builds_a_model_of_that_size_from_our_configuration(arch, preset, config, model):
    with torch.device("meta"):
        built = model(config(**arch(**arch.presets[preset]).saved().to_config()))
    assert sum(p.numel() for p in built.parameters()) == COUNTS[arch][preset]


@pytest.mark.parametrize(
    ("arch", "file", "config"),
    [
        (Qwen, "qwen", dict(intermediate_size=40, seq_length=32, layer_norm_epsilon=1e-6, num_attention_heads=2, kv_channels=6)),
        (Baichuan, "baichuan2_13b", dict(intermediate_size=20, model_max_length=64, z_loss_weight=0, num_attention_heads=6)),
    ],
)
@torch.no_grad()
def test_logits_equal_those_of_the_code_published_with_the_weights(arch, file, config):
    stored = load_file(Path(__file__).parent / "fixtures" / f"{file}.safetensors")
    ids, want = stored.pop("ids"), stored.pop("logits")
    config = config | dict(vocab_size=40, hidden_size=12, num_hidden_layers=2, model_type=arch.types[0])
    net = arch.from_config(config).build().eval()
    net.load_state_dict(import_state(net.config.names({"lm": 0}), stored))
    assert gap(net(ids), want) < 3e-6  # theirs is in float32 in places


@torch.no_grad()
def test_qwen_refuses_texts_for_which_its_code_would_change_positions():
    net = ours("qwen", reference("qwen"))
    with pytest.raises(ValueError, match="221 tokens is beyond the model's 220 positions"):
        net(sample(1, 221))
    with pytest.raises(ValueError, match="beyond the model's 220 positions"):
        generate_ids(net, [sample(1, 218)[0].tolist()], Sampling(max_tokens=8, temperature=0))
    config = dict(model_type="qwen", kv_channels=8, **SIZES)
    plain = Qwen.from_config(config | {"use_dynamic_ntk": False, "use_logn_attn": False})
    assert not plain.stretched and plain.build()(sample(1, 221)).shape[1] == 221
    for key, value in (("no_bias", False), ("rotary_pct", 0.5), ("kv_channels", 16)):
        with pytest.raises(ValueError, match=key):
            Qwen.from_config(config | {key: value})


def test_what_is_added_to_a_norm_heads_output_is_not_in_its_weight():
    net = ours("baichuan2_7b", reference("baichuan2_7b"))
    with pytest.raises(ValueError, match="head is a NormHead; leave it out of roles"):
        attach(anatomy(net), made("lora", {"roles": ("q", "head")}))


def test_baichuan_is_told_apart_by_what_its_configurations_say():
    sizes = dict(model_type="baichuan", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    found = [
        Baichuan.from_config(sizes | rest)
        for rest in (
            {"vocab_size": 64_000, "max_position_embeddings": 4096},
            {"vocab_size": 64_000, "model_max_length": 4096},
            {"vocab_size": 125_696, "max_position_embeddings": 4096, "model_max_length": 4096},
            {"vocab_size": 125_696, "model_max_length": 4096},
        )
    ]
    assert [(arch.alibi, arch.norm_head) for arch in found] == [(False, False), (True, False), (False, True), (True, True)]
    assert [arch.saved().to_config()["model_type"] for arch in found] == ["llama", "baichuan", "baichuan", "baichuan"]


SCALINGS = {
    "linear": ({"factor": 4}, Linear("linear", 4.0)),
    "dynamic": ({"factor": 2.0}, DynamicNTK("dynamic", 2.0, 8192)),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 2048}, YaRN("yarn", 4.0, 2048)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 4096},
        Llama3("llama3", 8.0, 4096),
    ),
    "longrope": (
        {"short_factor": [1, 2], "long_factor": [3, 4], "original_max_position_embeddings": 8192},
        LongRoPE("longrope", (1, 2), (3, 4), 8192),
    ),
}
BASE = {"model_type": "llama", "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
BASE |= {"intermediate_size": 32, "max_position_embeddings": 8192}


@pytest.mark.parametrize("kind", SCALINGS)
def test_scalings_are_read_from_both_generations_of_config_json_and_written_back(kind):
    said, want = SCALINGS[kind]
    new = Llama.from_config(BASE | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **said}})
    old = Llama.from_config(BASE | {"rope_theta": 5e5, "rope_scaling": {"type": kind, **said}})
    assert new.scaling == old.scaling == want and new.theta == old.theta == 5e5
    again = Llama.from_config(new.to_config())
    assert again.theta == 5e5 and again.build().rotary.scaling.sharpness == pytest.approx(want.sharpness)
    assert Llama.from_config(again.to_config()) == again
    if kind != "linear":
        assert "trained" not in said and again.scaling.trained == want.trained


def test_scalings_that_cannot_be_read_or_written_are_refused():
    for rope, sentence in (
        ({"rope_type": "mrope"}, "rotary scaling 'mrope'"),
        ({"rope_type": "linear"}, "'linear' lacks 'factor'"),
        ({"rope_type": "llama3", "factor": 8.0}, "'llama3' lacks 'low_freq_factor'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Llama.from_config(BASE | {"rope_parameters": rope})
    with pytest.raises(ValueError, match="make them equal"):
        Llama(positions=4096, scaling=DynamicNTK("dynamic", 2.0, 2048)).to_config()


def test_what_config_json_cannot_say_is_refused():
    with pytest.raises(ValueError, match="kind='qwen2' has biases"):
        Llama(kind="qwen2")
    with pytest.raises(ValueError, match="kind='llama' has no sliding windows"):
        Llama(windows=(16,))
    with pytest.raises(ValueError, match=r"one window, and the layers' are \[0, 16\]"):
        Llama(windows=(16, 0), kind="mistral").to_config()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("llama_", "qwen", "baichuan", "bloom", "mistral"))])
@torch.no_grad()
def test_the_decoder_of_one_token_gives_the_plain_paths_scores(kind):
    net = ours(kind, reference(kind)).eval()
    assert decodable(net)
    ids, cache = sample(2, 30), Cache(3)
    net(ids[:, :29], cache=cache)
    assert gap(Decoder(net, 2)(ids[:, 29], cache), net(ids)[:, -1]) < 1e-12


@pytest.mark.parametrize("kind", ["bloom_six", "baichuan_13b"])
@torch.no_grad()
def test_alibi_counts_tokens_across_padding_between_turns(kind):
    """Two rows with turns of unequal length in one cache: each is as if it were alone."""
    net = ours(kind, reference(kind))
    first, second = sample(2, 12), sample(2, 9, seed=3)
    keep = torch.tensor([[True] * 12, [False] * 4 + [True] * 8]), torch.tensor([[False] * 3 + [True] * 6, [True] * 9])
    cache = Cache(3)
    net(first, keep[0], cache=cache)
    got = net(second, keep[1], cache=cache)
    for row in range(2):
        alone = torch.cat([first[row][keep[0][row]], second[row][keep[1][row]]])[None]
        length = int(keep[1][row].sum())
        assert gap(got[row, -length:], net(alone)[0, -length:]) < 1e-12


@torch.no_grad()
def test_bloom_pads_as_transformers_does():
    model = reference("bloom_six")
    ids, mask = sample(2, 60), torch.ones(2, 60, dtype=torch.bool)
    mask[1, :17] = False
    want = model(ids, attention_mask=mask.long()).logits
    assert gap(ours("bloom_six", model)(ids, mask)[mask], want[mask]) < 1e-12


def test_blooms_own_gelu_is_the_tanh_one(monkeypatch):
    monkeypatch.undo()
    x = torch.linspace(-6, 6, 200)
    torch.testing.assert_close(BloomGelu()(x), torch.nn.functional.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)


def test_a_configuration_of_published_keys_only_is_enough():
    """The config.json of Qwen-7B."""
    published = {
        "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "hidden_size": 4096,
        "intermediate_size": 22016, "kv_channels": 128, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 32768,
        "model_type": "qwen", "no_bias": True, "num_attention_heads": 32, "num_hidden_layers": 32, "rotary_emb_base": 10000,
        "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 8192, "tie_word_embeddings": False, "use_dynamic_ntk": True,
        "use_flash_attn": "auto", "use_logn_attn": True, "vocab_size": 151936,
    }  # fmt: skip
    assert Qwen.from_config(published) == Qwen() == Qwen.from_config(Config(**published).to_dict())


FOLDERS = ["bloom", "qwen3", "qwen3_bias", "llama_three", "llama_yarn_mscale", "llama_longrope", "llama_dynamic"]


@pytest.mark.parametrize("kind", FOLDERS)
@torch.no_grad()
def test_folders_cross_both_ways(kind, tmp_path):
    theirs = reference(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert gap(model.logits(sample()), theirs(sample()).logits) < 1e-12
    model.save(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    assert gap(back(sample()).logits, theirs(sample()).logits) < 1e-12
    assert torch.equal(load_model(tmp_path / "ours").logits(sample()), model.logits(sample()))


@pytest.mark.parametrize(
    ("kind", "saved"), [("qwen", "qwen2"), ("baichuan_7b", "llama"), ("baichuan_13b", "baichuan"), ("baichuan2_7b", "baichuan")]
)
@torch.no_grad()
def test_folders_of_published_forms_are_read_and_saved_for_everyone(kind, saved, tmp_path):
    theirs = reference(kind)
    write_model(tmp_path, theirs.config.to_dict(), theirs.state_dict())
    model = load_model(tmp_path)
    assert gap(model.logits(sample()), theirs(sample()).logits) < 1e-12
    model.save(tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.net.config.kind == saved and gap(again.logits(sample()), model.logits(sample())) < 1e-12
    if saved != "baichuan":
        back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
        assert gap(back(sample()).logits, theirs(sample()).logits) < 1e-12


@pytest.mark.parametrize(("kind", "name"), [("qwen3", "Qwen3"), ("mistral", "Mistral"), ("bloom", "Bloom")])
@pytest.mark.parametrize("end", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
@torch.no_grad()
def test_label_heads_cross_both_ways(kind, name, end, tmp_path):
    labels = {} if end == "QuestionAnswering" else {"num_labels": 3}
    theirs = reference(kind, getattr(hf, f"{name}For{end}"), pad_token_id=0, **labels)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    back, told = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for key, want in theirs.eval()(sample(1, 30)).items():
        if "logits" in key:
            assert gap(back.eval()(sample(1, 30))[key], want) < 1e-12

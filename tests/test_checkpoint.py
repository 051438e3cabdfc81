"""Checkpoints: recognised by content, folded, complete, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rvcd.errors import Code, RvcdError
from rvcd.mlx_engine import weights
from rvcd.mlx_engine.checkpoint import describe, read_checkpoint, source_hashes
from rvcd.mlx_engine.configs import HubertConfig, RmvpeConfig, VoiceConfig
from rvcd.mlx_engine.state_dict import fold_weight_norm
from rvcd.mlx_engine.voice_checkpoint import sample_rate_of
from tests.support import seeded
from tests.support.torch_writer import BFloat16, Call, Global, save_legacy, save_zip

Tensors = dict[str, Any]
Change = Callable[[dict[str, Any]], object]


def export(version: str = "v2", sample_rate: int = 40000, f0: bool = True, **fields: Any) -> dict[str, Any]:
    tensors = seeded.voice_weights(version=version, sample_rate=sample_rate, f0=f0, tiny=True)
    config = seeded.voice_config(version=version, sample_rate=sample_rate, tiny=True)
    rest = {"config": config, "info": "7epoch", "sr": f"{sample_rate // 1000}k", "f0": int(f0), "version": version}
    return {"weight": tensors, **rest, **fields}


def saved(folder: Path, obj: Any) -> Path:
    save_zip(folder / "model.pth", obj)
    return folder / "model.pth"


def refusal(path: Path) -> RvcdError:
    with pytest.raises(RvcdError) as caught:
        read_checkpoint(path)
    described = describe(path)
    assert (described["usable"], described["code"]) == (False, caught.value.code)
    return caught.value


def voice_config(path: Path) -> VoiceConfig:
    config = read_checkpoint(path).config
    assert isinstance(config, VoiceConfig)
    return config


# Weight norm


def test_weight_norm_folds_over_the_axes_where_the_gain_is_one() -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((3, 4, 5)).astype(np.float32)
    for shape, axes in (((3, 1, 1), (1, 2)), ((1, 1, 5), (0, 1))):
        gain = rng.uniform(0.5, 2, shape).astype(np.float32)
        folded = fold_weight_norm("layer", gain, direction)
        norms = np.sqrt((folded.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
        np.testing.assert_allclose(norms, gain, rtol=1e-6)
        scale = folded / direction
        np.testing.assert_allclose(scale, np.broadcast_to(scale.mean(axis=axes, keepdims=True), scale.shape), rtol=1e-5)
        assert (scale > 0).all()


def test_half_precision_is_widened_before_it_is_squared(tmp_path: Path) -> None:
    voice = export()
    name = "dec.resblocks.0.convs1.0"
    voice["weight"][f"{name}.weight_v"] = np.full_like(voice["weight"][f"{name}.weight_v"], 60000)
    tensor = read_checkpoint(saved(tmp_path, voice)).tensors[f"{name}.weight"]
    gain = voice["weight"][f"{name}.weight_g"].astype(np.float32)
    np.testing.assert_allclose(tensor, np.broadcast_to(gain / np.sqrt(tensor[0].size), tensor.shape), rtol=1e-6)


def respelt(tensors: Tensors) -> Tensors:
    new = "parametrizations.weight.original"
    return {n.replace("weight_g", f"{new}0").replace("weight_v", f"{new}1"): t for n, t in tensors.items()}


def test_all_spellings_of_weight_norm_read_alike(tmp_path: Path) -> None:
    plain = read_checkpoint(saved(tmp_path, export()))
    newer = read_checkpoint(saved(tmp_path, export() | {"weight": respelt(export()["weight"])}))
    folded = read_checkpoint(saved(tmp_path, export() | {"weight": plain.tensors}))
    for other in (newer, folded):
        assert other.config == plain.config
        for name, tensor in plain.tensors.items():
            np.testing.assert_array_equal(other.tensors[name], tensor, strict=True)
    assert not any("weight_" in name for name in plain.tensors)
    assert all(tensor.dtype == np.float32 for tensor in plain.tensors.values())


# Voices


@pytest.mark.parametrize("f0", [True, False])
@pytest.mark.parametrize(("version", "sample_rate"), list(seeded.UPSAMPLING))
def test_reads_every_kind_of_voice(tmp_path: Path, version: str, sample_rate: int, f0: bool) -> None:
    checkpoint = read_checkpoint(
        seeded.voice(tmp_path / "v.pth", version=version, sample_rate=sample_rate, f0=f0, tiny=True)
    )
    config = checkpoint.config
    assert isinstance(config, VoiceConfig)
    assert (checkpoint.kind, config.version, config.sample_rate, config.uses_f0) == ("voice", version, sample_rate, f0)
    assert (config.samples_per_frame, config.speakers, config.attention_window) == (sample_rate // 100, 3, 10)
    assert config.feature_width == seeded.feature_width(version, tiny=True)
    assert source_hashes(tmp_path / "v.pth") == {"v.pth": weights.sha256_of(tmp_path / "v.pth")}


def test_legacy_and_bfloat16_voices_read_too(tmp_path: Path) -> None:
    plain = read_checkpoint(saved(tmp_path, export()))
    save_legacy(tmp_path / "old.pth", export())
    np.testing.assert_array_equal(
        read_checkpoint(tmp_path / "old.pth").tensors["emb_g.weight"], plain.tensors["emb_g.weight"]
    )
    rounded = {name: BFloat16(tensor) for name, tensor in export()["weight"].items()}
    brain = read_checkpoint(saved(tmp_path, export() | {"weight": rounded}))
    np.testing.assert_allclose(brain.tensors["emb_g.weight"], plain.tensors["emb_g.weight"], rtol=0.004)


@pytest.mark.parametrize(
    ("said", "rate"),
    [
        ("40k", 40000),
        ("40000", 40000),
        (40000, 40000),
        ("44.1k", 44100),
        ("x", None),
        (None, None),
        (True, None),
        (0, None),
    ],
)
def test_reads_rates_as_exports_write_them(said: Any, rate: int | None) -> None:
    assert sample_rate_of(said) == rate


def test_odd_fields_of_real_files(tmp_path: Path) -> None:
    voice = export(f0=True, sr=40000, epoch=200, author="someone", embedder_model="spin-v2", vocoder="HiFi-GAN")
    voice["f0"] = "True"
    voice["config"][-1] = "40k"
    voice["speaker_info"] = [{"id": 0, "name": "Ada"}]
    checkpoint = read_checkpoint(saved(tmp_path, voice))
    assert isinstance(checkpoint.config, VoiceConfig)
    assert checkpoint.config.uses_f0
    assert checkpoint.config.sample_rate == 40000
    expected = {"epoch": 200, "author": "someone", "embedder": "spin-v2", "speaker_names": [{"id": 0, "name": "Ada"}]}
    assert expected.items() <= json.loads(json.dumps(checkpoint.info)).items()


def test_missing_fields_have_the_defaults_of_the_first_exports(tmp_path: Path) -> None:
    voice = export(version="v1", f0=False)
    del voice["version"], voice["f0"]
    config = voice_config(saved(tmp_path, voice))
    assert (config.version, config.uses_f0) == ("v1", False)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"version": "v3"}, Code.UNKNOWN_VERSION, "v3"),
        ({"version": "voras_beta"}, Code.UNKNOWN_VERSION, "voras_beta"),
        ({"vocoder": "RefineGAN"}, Code.UNSUPPORTED_VOCODER, "RefineGAN"),
        ({"vocoder": "RingFormer"}, Code.UNSUPPORTED_VOCODER, "RingFormer"),
        ({"embedder_model": "custom"}, Code.UNSUPPORTED_EMBEDDER, "custom"),
        ({"embedder_output_layer": 9}, Code.BAD_CONFIG, "ddPn08"),
        ({"config": [1] * 19}, Code.BAD_CONFIG, "ddPn08"),
        ({"config": ["x"] * 18, "sr": "40k"}, Code.BAD_CONFIG, "resblock"),
        ({"f0": "perhaps"}, Code.BAD_CONFIG, "perhaps"),
    ],
)
def test_foreign_voices_are_refused_by_name(tmp_path: Path, fields: dict[str, Any], code: Code, said: str) -> None:
    error = refusal(saved(tmp_path, export() | fields))
    assert error.code is code
    assert said in error.sentence


@pytest.mark.parametrize(
    ("name", "vocoder"), [("dec.mrfs.0.weight", "MRF HiFi-GAN"), ("dec.downsample_blocks.0.weight", "RefineGAN")]
)
def test_foreign_decoders_are_told_by_their_tensors(tmp_path: Path, name: str, vocoder: str) -> None:
    voice = export()
    voice["weight"][name] = np.ones(3, np.float32)
    error = refusal(saved(tmp_path, voice))
    assert error.code is Code.UNSUPPORTED_VOCODER
    assert vocoder in error.sentence
    assert describe(tmp_path / "model.pth")["info"]["vocoder"] == vocoder


def _replace(entry: int, value: Any) -> Change:
    return lambda voice: voice["config"].__setitem__(entry, value)


def _tensor(name: str, value: Any) -> Change:
    return lambda voice: voice["weight"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda voice: voice["weight"].pop("enc_p.proj.bias"), Code.MISSING_TENSOR, "enc_p.proj.bias"),
        (lambda voice: voice["weight"].pop("dec.ups.1.weight_g"), Code.MISSING_TENSOR, "dec.ups.1.weight_g"),
        (lambda voice: voice["weight"].pop("emb_g.weight"), Code.MISSING_TENSOR, "emb_g.weight"),
        (_tensor("dec.conv_post.bias", np.ones(1, np.float32)), Code.UNEXPECTED_TENSOR, "dec.conv_post.bias"),
        (_tensor("enc_p.proj.bias", np.ones(5, np.float32)), Code.WRONG_SHAPE, "(5,)"),
        (_tensor("enc_p.proj.bias", [1.0]), Code.WRONG_SHAPE, "enc_p.proj.bias"),
        (_tensor("enc_p.proj.bias", np.full(3, np.nan, np.float32)), Code.NOT_FINITE, "enc_p.proj.bias"),
        (_replace(12, [10, 10, 2, 4]), Code.BAD_CONFIG, "800"),
        (_replace(17, 48000), Code.BAD_CONFIG, "48000"),
        (_replace(12, [10, 10, 4]), Code.BAD_CONFIG, "upsample"),
        (_replace(5, 7), Code.BAD_CONFIG, "7 heads"),
        (_replace(6, 10**9), Code.BAD_CONFIG, "layers"),
    ],
)
def test_incomplete_voices_are_refused_by_name(tmp_path: Path, change: Change, code: Code, said: str) -> None:
    voice = export()
    change(voice)
    error = refusal(saved(tmp_path, voice))
    assert error.code is code
    assert said in error.sentence


def training_file(version: str, sample_rate: int, f0: bool = True) -> dict[str, Any]:
    tensors = seeded.voice_weights(version=version, sample_rate=sample_rate, f0=f0, tiny=True)
    wide = np.zeros((len(tensors["enc_p.emb_phone.bias"]), 256 if version == "v1" else 768), np.float16)
    tensors |= {"enc_p.emb_phone.weight": wide, "enc_q.pre.weight": np.ones((2, 1025, 1), np.float16)}
    return {"model": tensors, "optimizer": {"state": {}}, "learning_rate": 1e-4, "iteration": 3}


@pytest.mark.parametrize(("version", "sample_rate"), list(seeded.UPSAMPLING))
def test_a_training_checkpoint_tells_its_config_by_its_shapes(tmp_path: Path, version: str, sample_rate: int) -> None:
    stated = voice_config(seeded.voice(tmp_path / "v.pth", version=version, sample_rate=sample_rate, tiny=True))
    checkpoint = read_checkpoint(saved(tmp_path, training_file(version, sample_rate)))
    wide = {**stated.to_json(), "feature_width": 256 if version == "v1" else 768}
    assert checkpoint.config.to_json() == wide
    assert not any(name.startswith("enc_q.") for name in checkpoint.tensors)
    assert checkpoint.info["iteration"] == 3


def test_an_ambiguous_training_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "32k or 48k" in refusal(saved(tmp_path, training_file("v1", 48000, f0=False))).sentence
    narrow = training_file("v2", 40000)
    narrow["model"]["enc_p.emb_phone.weight"] = np.zeros((len(narrow["model"]["enc_p.emb_phone.bias"]), 7), np.float16)
    assert refusal(saved(tmp_path, narrow)).code is Code.NO_CONFIG
    odd = training_file("v2", 40000)
    odd["model"]["dec.ups.0.weight_v"] = np.ones((2, 2, 5), np.float16)
    odd["model"]["dec.ups.0.weight_g"] = np.ones((2, 1, 1), np.float16)
    assert refusal(saved(tmp_path, odd)).code is Code.NO_CONFIG


def test_discriminators_and_strangers_are_refused(tmp_path: Path) -> None:
    discriminator = {"model": {"discriminators.0.convs.0.bias": np.ones(2, np.float32)}, "iteration": 1}
    assert "discriminator" in refusal(saved(tmp_path, discriminator)).sentence
    stranger = refusal(saved(tmp_path, {"conv.weight": np.ones(2, np.float32)}))
    assert "conv.weight" in stranger.sentence
    for nothing in ([1, 2], {}, {"weight": "text"}, "text"):
        assert refusal(saved(tmp_path, nothing)).code is Code.NOT_A_CHECKPOINT


def test_reads_the_voices_of_huggingface_hub_rvc(tmp_path: Path) -> None:
    voice = export(sample_rate=48000)
    plain = read_checkpoint(saved(tmp_path, voice))
    names = ["inter_channels", "hidden_channels", "filter_channels", "n_heads", "n_layers", "kernel_size", "p_dropout"]
    names += ["resblock", "resblock_kernel_sizes", "resblock_dilation_sizes", "upsample_rates"]
    names += ["upsample_initial_channel", "upsample_kernel_sizes", "spk_embed_dim", "gin_channels"]
    model = dict(zip(names, voice["config"][2:17], strict=True))
    config = json.dumps({"train": {}, "data": {"sampling_rate": 48000}, "model": model})
    metadata = {"kind": "rvc-v2-f0", "version": "v2", "f0": "true", "sample_rate": "48000", "config_json": config}
    save_file(voice["weight"], tmp_path / "hub.safetensors", metadata)
    checkpoint = read_checkpoint(tmp_path / "hub.safetensors")
    assert checkpoint.config == plain.config
    np.testing.assert_array_equal(checkpoint.tensors["dec.ups.0.weight"], plain.tensors["dec.ups.0.weight"])


# Content encoders


def test_fairseq_and_transformers_encoders_read_alike(tmp_path: Path) -> None:
    folder = read_checkpoint(seeded.content_encoder(tmp_path / "hf", tiny=True, layers=2))
    fairseq = read_checkpoint(seeded.fairseq_content_encoder(tmp_path / "hubert_base.pt", tiny=True, layers=2))
    assert folder.kind == fairseq.kind == "content-encoder"
    assert folder.tensors.keys() == fairseq.tensors.keys()
    for name, tensor in folder.tensors.items():
        np.testing.assert_array_equal(fairseq.tensors[name], tensor, strict=True)
    assert isinstance(folder.config, HubertConfig)
    assert (folder.config.layers, folder.config.heads) == (2, seeded.TINY_CONTENT.heads)
    assert folder.config.projection == seeded.TINY_CONTENT.projection
    assert set(source_hashes(tmp_path / "hf")) == {"config.json", "pytorch_model.bin"}
    assert "encoder.pos_conv_embed.conv.weight" in folder.tensors


def fairseq_file(tmp_path: Path, cfg: Any = None, args: Any = None, **changed: Any) -> Path:
    tensors = {
        seeded._fairseq_name(name): tensor
        for name, tensor in seeded.content_weights(seed=0, tiny=True, layers=1).items()
    }
    return saved(tmp_path, {"args": args, "cfg": cfg, "model": tensors | changed})


def node(value: Any) -> Call:
    return Call(Global("omegaconf.nodes", "AnyNode"), state={"_val": value}, new=True)


def container(content: dict[str, Any]) -> Call:
    return Call(Global("omegaconf.dictconfig", "DictConfig"), state={"_content": content, "_parent": None}, new=True)


@pytest.mark.parametrize(
    "where",
    [
        lambda model, task: {"cfg": {"model": model, "task": task}},
        lambda model, task: {"args": Call(Global("argparse", "Namespace"), state=model | task, new=True)},
        lambda model, task: {
            "cfg": container(
                {
                    "model": container({name: node(value) for name, value in model.items()}),
                    "task": container({name: node(value) for name, value in task.items()}),
                }
            )
        },
    ],
)
def test_finds_fairseq_settings_wherever_they_were_kept(tmp_path: Path, where: Any) -> None:
    layers = "[(32,10,4)] + [(32,3,3)] * 4 + [(32,2,2)] * 2"
    model = {"encoder_attention_heads": 2, "conv_feature_layers": layers}
    config = read_checkpoint(fairseq_file(tmp_path, **where(model, {"normalize": True}))).config
    assert isinstance(config, HubertConfig)
    assert (config.heads, config.normalize) == (2, True)
    # The kernels are HuBERT's own, the strides are what the file says.
    assert config.conv_strides == (4, 3, 3, 3, 3, 2, 2)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    for model in ({"layer_norm_first": True}, {"extractor_mode": "layer_norm"}, {"encoder_attention_heads": 5}):
        assert refusal(fairseq_file(tmp_path, {"model": model})).code is Code.BAD_CONFIG
    folder = seeded.content_encoder(tmp_path / "hf", tiny=True, layers=1)
    settings = json.loads((folder / "config.json").read_text())
    for changed in ({"do_stable_layer_norm": True}, {"num_hidden_layers": 3}, {"hidden_size": 1}):
        (folder / "config.json").write_text(json.dumps(settings | changed))
        assert refusal(folder).code is Code.BAD_CONFIG
    (folder / "config.json").write_text("{")
    assert refusal(folder).code is Code.BAD_CONFIG
    (folder / "config.json").unlink()
    assert refusal(folder).code is Code.NOT_A_CHECKPOINT


def test_an_encoder_may_be_prefixed_safetensors_without_projection(tmp_path: Path) -> None:
    folder = seeded.content_encoder(tmp_path / "hf", tiny=True, layers=1)
    plain = read_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    tensors = respelt(seeded.content_weights(seed=0, tiny=True, layers=1))
    kept = {f"hubert.{name}": tensor for name, tensor in tensors.items() if not name.startswith("final_proj")}
    save_file(kept, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    for path in (folder, folder / "model.safetensors"):
        checkpoint = read_checkpoint(path)
        assert isinstance(checkpoint.config, HubertConfig)
        assert (checkpoint.config.projection, checkpoint.config.normalize) == (0, True)
    np.testing.assert_array_equal(
        checkpoint.tensors["encoder.pos_conv_embed.conv.weight"], plain.tensors["encoder.pos_conv_embed.conv.weight"]
    )


# Pitch models


def test_reads_pitch_models_of_any_size(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(seeded.pitch_model(tmp_path / "rmvpe.pt", tiny=True))
    sizes = seeded.TINY_PITCH
    assert isinstance(checkpoint.config, RmvpeConfig)
    assert checkpoint.config.level_channels == tuple(sizes.channels * 2**level for level in range(sizes.levels))
    assert (checkpoint.config.mel_bins, checkpoint.config.gru_hidden, checkpoint.config.pitch_bins) == (
        128,
        sizes.gru,
        360,
    )
    assert not any(name.endswith("num_batches_tracked") for name in checkpoint.tensors)


def test_a_pitch_model_must_be_whole(tmp_path: Path) -> None:
    tensors = seeded.pitch_weights(seed=0, tiny=True)
    del tensors["fc.0.gru.bias_hh_l0_reverse"]
    assert "fc.0.gru.bias_hh_l0_reverse" in refusal(saved(tmp_path, tensors)).sentence
    image = tensors["fc.0.gru.weight_ih_l0"]
    assert refusal(saved(tmp_path, tensors | {"fc.0.gru.weight_ih_l0": image[:, 1:]})).code is Code.BAD_CONFIG


# What `inspect` shows


def test_describes_voices_indexes_and_converted_files(tmp_path: Path) -> None:
    voice = describe(saved(tmp_path, export()))
    assert {
        "kind": "voice",
        "usable": True,
        "version": "v2",
        "f0": True,
        "sample_rate": 40000,
        "code": None,
    }.items() <= (voice.items())
    assert voice["tensors"] == len(export()["weight"])
    index = describe(seeded.retrieval_index(tmp_path / "any.name", vectors=120, width=8))
    assert (index["kind"], index["vectors"], index["width"], index["usable"]) == ("index", 120, 8, True)
    converted = tmp_path / "c.safetensors"
    config = voice_config(tmp_path / "model.pth")
    weights.save(converted, {"a": np.ones(1, np.float32)}, weights.ModelCard("voice", "Ada", "k", config, {}))
    about = describe(converted)
    assert (about["kind"], about["converted"], about["name"], about["usable"]) == ("voice", True, "Ada", True)
    assert refusal_of_converted(converted) is Code.NOT_A_CHECKPOINT
    for description in (voice, index, about):
        json.dumps(description, allow_nan=False)


def refusal_of_converted(path: Path) -> Code:
    with pytest.raises(RvcdError) as caught:
        read_checkpoint(path)
    return caught.value.code


def test_describes_what_it_cannot_use(tmp_path: Path) -> None:
    about = describe(saved(tmp_path, export(vocoder="RefineGAN")))
    assert (about["kind"], about["usable"], about["code"]) == ("voice", False, "unsupported_vocoder")
    assert about["info"]["version"] == "v2"
    assert describe(tmp_path / "absent")["code"] == "not_found"
    assert describe(tmp_path)["code"] == "not_a_checkpoint"
    (tmp_path / "empty.pth").write_bytes(b"")
    assert describe(tmp_path / "empty.pth")["code"] == "truncated_file"

"""The torch side: published packages, unchanged, reading the very files that the engine reads.

- `transformers` HubertModel: content features.
- `huggingface_hub_rvc` (MIT), core/rmvpe.py and core/models.py: pitch model and synthesizers.
- `rvc_next` (GPL-3.0, run and never copied), engine/convert/offline.py OfflineConverter: the whole pipeline,
  with `unvoiced="zero"`, which is the classic arithmetic that the engine calls its reference.

Both RVC packages carry the same RMVPE (zero padding in time) and the same source, whose phase is kept per frame
and wrapped; the classic WebUI differs from neither. Four things are done to them from outside:

- `noise_off` replaces `torch.randn_like`, `torch.randn` and `torch.rand` by zeros. Inference calls `randn_like` for
  the latent noise and for the source's additive noise, and `rand` for the start phases.
- The int16 rounding at the pipeline's end is left out (`to_int16` returns floats in ±1), because a 16-bit step
  would hide what is compared.
- The packages fix some sizes in code (feature widths 256 and 768, RMVPE's levels): where a tiny checkpoint is
  smaller, the layer is replaced by one of its size before the weights are loaded.
- Odd upsample rates do not work in either package; the padding rule of the trainer that introduced them is set on
  the layers (Applio, generators/hifigan_nsf.py: padding u//2 + u%2, output padding u%2, odd source kernels).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from huggingface_hub_rvc.core import models as hub_models
from huggingface_hub_rvc.core import rmvpe as hub_rmvpe
from rvc_next.engine.convert import offline
from rvc_next.engine.convert.params import VoiceParams
from rvc_next.engine.f0 import rmvpe as next_rmvpe
from rvc_next.engine.models import loader
from rvc_next.engine.runtime import AssetPaths, ChunkConfig, Runtime
from transformers import HubertModel
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # it warns that plain HubertModel has no final_proj


@contextmanager
def noise_off() -> Iterator[None]:
    """Make every random number zero."""

    def zeros(*shape: Any, **options: Any) -> torch.Tensor:
        return torch.zeros(*shape, **options)

    def zeros_like(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.zeros_like(tensor, **options)

    with (
        mock.patch.object(torch, "randn_like", zeros_like),
        mock.patch.object(torch, "randn", zeros),
        mock.patch.object(torch, "rand", zeros),
    ):
        yield


class Content:
    """transformers' HubertModel, with the projection that v1 voices read."""

    def __init__(self, folder: Path) -> None:
        self.model = HubertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        self.projection = weights["final_proj.weight"].float(), weights["final_proj.bias"].float()

    @torch.no_grad()
    def features(self, samples_16k: np.ndarray, version: str) -> np.ndarray:
        """(frames, width): layer 9 projected for v1, the last layer for v2."""
        source = torch.from_numpy(np.asarray(samples_16k, np.float32))[None]
        states = self.model(source, output_hidden_states=True).hidden_states
        features = torch.nn.functional.linear(states[9], *self.projection) if version == "v1" else states[-1]
        return features[0].numpy()


class Pitch:
    """huggingface_hub_rvc's RMVPE."""

    def __init__(self, path: Path) -> None:
        with _rmvpe_sizes(hub_rmvpe, path):
            self.model = hub_rmvpe.RMVPE(str(path), is_half=False, device="cpu")

    def salience(self, samples_16k: np.ndarray) -> np.ndarray:
        """(frames, 360), 100 frames per second."""
        mel = self.model.extract_mel(np.asarray(samples_16k, np.float32), center=True)
        return self.model.mel2hidden(mel)[0].numpy()

    def f0(self, samples_16k: np.ndarray) -> np.ndarray:
        """(frames,) Hz, 0 where unvoiced."""
        return self.model.decode(self.salience(samples_16k), thred=0.03)


class Voice:
    """huggingface_hub_rvc's synthesizers."""

    def __init__(self, path: Path) -> None:
        export = torch.load(path, map_location="cpu", weights_only=True)
        self.uses_f0 = bool(export["f0"])
        classes = {
            ("v1", True): hub_models.SynthesizerTrnMs256NSFsid,
            ("v1", False): hub_models.SynthesizerTrnMs256NSFsid_nono,
            ("v2", True): hub_models.SynthesizerTrnMs768NSFsid,
            ("v2", False): hub_models.SynthesizerTrnMs768NSFsid_nono,
        }
        config = list(export["config"])
        config[15] = len(export["weight"]["emb_g.weight"])
        self.model = _fit(classes[export["version"], self.uses_f0](*config, is_half=False), export["weight"])
        self.model.eval()

    @torch.no_grad()
    def synthesize(self, features: np.ndarray, f0: np.ndarray | None, speaker_id: int = 0) -> np.ndarray:
        """(samples,) from features (frames, width) and f0 in Hz, both at 100 frames per second."""
        frames = torch.tensor([len(features)])
        arguments = [torch.from_numpy(np.asarray(features, np.float32))[None], frames]
        if self.uses_f0:
            coarse = offline.offline_f0(_GivenPitch(f0), None, len(f0), 0.0, "zero").coarse
            arguments += [torch.from_numpy(coarse).long()[None], torch.from_numpy(np.asarray(f0, np.float32))[None]]
        return self.model.infer(*arguments, torch.tensor([speaker_id]))[0][0, 0].numpy()


class Pipeline:
    """rvc_next's offline conversion over one content encoder and one pitch model."""

    def __init__(self, content_encoder: Path, pitch: Path) -> None:
        self.runtime = Runtime(_Assets(content_encoder, pitch), device="cpu", precision="fp32")
        self.standard_windows = self.runtime.chunk

    def convert(
        self,
        samples_16k: np.ndarray,
        voice: Path,
        *,
        index: Path | None = None,
        f0: np.ndarray | None = None,
        windows: tuple[int, int, int, int] | None = None,
        **params: Any,
    ) -> np.ndarray:
        """(samples,) in ±1 at the voice's rate; `params` are those of rvc_next's VoiceParams."""
        runtime = self.runtime
        runtime.chunk = ChunkConfig(*windows) if windows else self.standard_windows
        with (
            nullcontext() if f0 is None else mock.patch.object(runtime, "f0", return_value=_GivenPitch(f0)),
            _rmvpe_sizes(next_rmvpe, runtime.assets.rmvpe),
            mock.patch.object(offline, "to_int16", _to_float),
            mock.patch.object(loader, "synthesizer_class", _fitting(loader.synthesizer_class, voice)),
        ):
            converted, _ = offline.OfflineConverter(runtime).convert(
                samples_16k,
                runtime.voice(voice),
                VoiceParams(**{"unvoiced": "zero", **params}),
                index=runtime.index(index) if index else None,
            )
        return converted


class _Assets(AssetPaths):
    """The two models, wherever they lie."""

    def __init__(self, content_encoder: Path, pitch: Path) -> None:
        super().__init__(content_encoder.parent)
        object.__setattr__(self, "content_encoder", content_encoder)
        object.__setattr__(self, "pitch", pitch)

    def embedder_dir(self, name: str) -> Path:
        return self.content_encoder

    @property
    def rmvpe(self) -> Path:
        return self.pitch


class _GivenPitch:
    """A pitch provider that knows the answer."""

    name = "given"

    def __init__(self, f0: np.ndarray) -> None:
        self.f0 = f0

    def compute(self, x: np.ndarray, p_len: int) -> np.ndarray:
        return np.array(self.f0, np.float64)  # a copy: it is transposed in place


def _to_float(audio: np.ndarray) -> np.ndarray:
    """What rvc_next's `to_int16` does to the level, without its rounding."""
    return audio / max(1.0, np.abs(audio).max() / 0.99)


def _fit(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Give the model the sizes of the weights, then the weights; both sides must know every name."""
    del model.enc_q
    width = weights["enc_p.emb_phone.weight"].shape[1]
    model.enc_p.emb_phone = torch.nn.Linear(width, model.hidden_channels)
    _allow_odd_rates(model.dec)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model


def _allow_odd_rates(decoder: Any) -> None:
    rates = [layer.stride[0] for layer in decoder.ups]
    if not any(rate % 2 for rate in rates):
        return
    for layer in decoder.ups:
        rate = layer.stride[0]
        layer.padding, layer.output_padding = (rate // 2 + rate % 2,), (rate % 2,)
    for stage, layer in enumerate(getattr(decoder, "noise_convs", [])):
        stride = int(np.prod(rates[stage + 1 :]))
        width = 1 if stride == 1 else 2 * stride - stride % 2
        decoder.noise_convs[stage] = torch.nn.Conv1d(
            1, layer.out_channels, width, stride, padding=(width - stride) // 2
        )


def _fitting(choose: Callable[[str, bool], type], path: Path) -> Callable[[str, bool], Callable[..., Any]]:
    """rvc_next's choice of class, made to fit; the package then loads the weights a second time, itself."""

    def fitting(version: str, f0: bool) -> Callable[..., Any]:
        def build(*config: Any, **options: Any) -> Any:
            weights = torch.load(path, map_location="cpu", weights_only=True)["weight"]
            model = _fit(choose(version, f0)(*config, **options), weights)
            model.enc_q = torch.nn.Identity()  # the package deletes it
            return model

        return build

    return fitting


@contextmanager
def _rmvpe_sizes(module: Any, path: Path) -> Iterator[None]:
    """Let the module's RMVPE build the network that the checkpoint holds, whatever its sizes."""
    names = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def count(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix))

    network = module.E2E

    def build(_blocks: int, layers: int, kernel: tuple[int, int]) -> Any:
        first = names["unet.encoder.layers.0.conv.0.conv.0.weight"]
        with mock.patch.object(module, "E2E", network):  # the class looks itself up by this name
            model = network(
                count("unet.encoder.layers.0.conv."),
                layers,
                kernel,
                en_de_layers=count("unet.encoder.layers."),
                inter_layers=count("unet.intermediate.layers."),
                en_out_channels=first.shape[0],
            )
        hidden = names["fc.0.gru.weight_hh_l0"].shape[1]
        model.fc[0] = module.BiGRU(3 * 128, hidden, layers)
        model.fc[1] = torch.nn.Linear(2 * hidden, 360)
        return model

    with mock.patch.object(module, "E2E", build):
        yield

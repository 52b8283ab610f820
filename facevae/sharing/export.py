"""Export of a model as ONNX files, each compared with torch before it is written."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facevae.config import WHOLE_TEXTURE
from facevae.data.conversion import Progress
from facevae.errors import Argument, ModelError, UsageError
from facevae.latent_space.edits import without_effect
from facevae.models.bundle import Bundle
from facevae.networks.vae import VAE
from facevae.system.files import replacing, write_json
from facevae.system.runtime import full_precision, generator

OPSET = 18  # released in 2022; the lowest that the exporter writes without conversion
_IR_VERSION = 8  # that of ONNX 1.13, the release with this opset
_TOLERANCE = 1e-3  # relative to the largest output; summing in another order changes about 1e-6
_SHEET = "model.json"


@dataclass(frozen=True)
class Exported:
    """An exported file, and the largest difference of its outputs from torch's."""

    path: Path
    max_difference: float


@dataclass(frozen=True)
class _Part:
    """A network to export: a function that makes a batch of inputs, and the names of input and outputs."""

    name: str
    network: nn.Module
    make_batch: Callable[[int], Tensor]
    input_name: str
    output_names: tuple[str, ...]


def export_onnx(
    bundle: Bundle,
    name: str,
    folder: Path,
    progress: Progress = lambda *_: None,
    texture: float = WHOLE_TEXTURE,
) -> list[Exported]:
    """Write `encoder.onnx`, `decoder.onnx`, `prior.onnx` and `model.json` into `folder`.

    The encoder maps images (N, 3, size, size) in [0, 1] to mean and logvar (N, D); the decoder maps
    latents (N, D) to images, with this much `texture`, from 0 to 1; the prior maps standard normal
    noise (N, D) to latents, with the steps of a flow unrolled. `name` is the model's name in the
    metadata. Raises `UsageError` without the extra `onnx`, and `ModelError` if the outputs of a file
    differ from torch's.
    """
    require_onnx()
    bundle.to(torch.device("cpu"))
    about = {**_about(bundle, name), "texture": texture}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    parts = _parts(bundle, texture)
    written = []
    for i, part in enumerate(parts):
        written.append(_export(part, folder / f"{part.name}.onnx", texts))
        progress("Exporting", i + 1, len(parts))
    write_json(folder / _SHEET, {**about, **_numbers(bundle)})
    return written


def require_onnx() -> None:
    """Raise `UsageError` if the extra `onnx` is not installed."""
    try:
        import onnx  # noqa: F401 - an extra, imported only when used
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - used by torch's exporter
    except ImportError as error:
        reason = " needs the extra 'onnx': pip install 'facevae[onnx]'"
        raise UsageError(Argument("onnx"), reason) from error


class _Posterior(nn.Module):
    """Images → mean and log-variance, without the decoding of `VAE.forward`."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(images)


class _Pictures(nn.Module):
    """Latents → images with a fixed amount of texture."""

    def __init__(self, vae: VAE, texture: float) -> None:
        super().__init__()
        self.vae, self.texture = vae, texture

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, self.texture)


def _parts(bundle: Bundle, texture: float) -> list[_Part]:
    size, latent_dim = bundle.config.size, bundle.config.latent_dim

    def images(count: int) -> Tensor:
        return torch.rand(count, 3, size, size, generator=generator(count))

    def noise(count: int) -> Tensor:
        return torch.randn(count, latent_dim, generator=generator(count))

    return [
        _Part("encoder", _Posterior(bundle.vae), images, "images", ("mean", "logvar")),
        _Part("decoder", _Pictures(bundle.vae, texture), noise, "latents", ("images",)),
        _Part("prior", bundle.prior, noise, "noise", ("latents",)),
    ]


def _about(bundle: Bundle, name: str) -> dict[str, Any]:
    return {
        "model": name,
        "terms": str(bundle.provenance.get("terms", "")),
        **bundle.describe(),
        "attributes": [attribute.name for attribute in bundle.attributes],
    }


def _numbers(bundle: Bundle) -> dict[str, Any]:
    """The numbers that arithmetic on latents needs in addition to the networks."""
    tensors = (bundle.directions, bundle.scorers, bundle.interactions)
    rows = []
    for direction, scorer, interactions in zip(*(t for t in tensors if t is not None), strict=True):
        varying = without_effect(interactions, direction[None], scorer[None])
        rows.append([t.tolist() for t in (direction, scorer, varying)])
    attributes = [
        dataclasses.asdict(attribute)
        | dict(zip(("direction", "scorer", "interactions"), row, strict=True))
        for attribute, row in zip(bundle.attributes, rows, strict=True)
    ]
    axes = zip(bundle.axes.rows.tolist(), bundle.axes.offsets.tolist(), strict=True)
    return {
        "attributes": attributes,
        "axes": [{"row": row, "offset": offset} for row, offset in axes],
        "latents": {
            "mean": bundle.latent_mean.tolist(),
            "spread": bundle.latent_spread.tolist(),
        },
    }


def _export(part: _Part, path: Path, texts: dict[str, str]) -> Exported:
    import onnx

    with full_precision(), _silenced():
        program = torch.onnx.export(
            part.network.eval(),
            (part.make_batch(2),),
            input_names=[part.input_name],
            output_names=list(part.output_names),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - None only from the other exporter
    proto = program.model_proto
    _strip(proto)
    proto.ir_version = _IR_VERSION
    proto.producer_name, proto.producer_version = "facevae", version("facevae")
    onnx.helper.set_model_props(proto, texts)
    with replacing(path) as temporary:
        try:
            onnx.checker.check_model(proto, full_check=True)
            onnx.save(proto, temporary)
        except (ValueError, onnx.checker.ValidationError) as error:
            msg = f"{path}: this model cannot be written as one ONNX file ({error})"
            raise ModelError(msg) from error
        return Exported(path, _check(part, path, temporary))


def _strip(proto: Any) -> None:
    """Remove the exporter's own notes, such as paths of local source files."""
    del proto.graph.metadata_props[:]
    graph = proto.graph
    for values in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        for value in values:
            del value.metadata_props[:]


def _check(part: _Part, path: Path, written: Path) -> float:
    """Largest difference from torch, on batch sizes that the exporter did not see.

    Raises `ModelError` if it exceeds the tolerance.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(
        written.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    differences = []
    for count in (1, 3):
        example = part.make_batch(count)
        with full_precision():
            expected = part.network(example)
        found = session.run(list(part.output_names), {part.input_name: example.numpy()})
        outputs = expected if isinstance(expected, tuple) else (expected,)
        for name, a, b in zip(part.output_names, found, outputs, strict=True):
            difference = float((torch.from_numpy(a) - b).abs().max())
            differences.append(difference)
            if not difference <= _TOLERANCE * max(1.0, float(b.abs().max())):
                msg = f"{path}: its {name} differ from torch's by {difference:.2g}; nothing is written there"
                raise ModelError(msg)
    return max(differences)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the exporter's warnings, which are about packages and torch itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

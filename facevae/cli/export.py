"""`export`."""

from pathlib import Path
from typing import Annotated

import typer

from facevae.cli import options
from facevae.cli.session import find_model, report_result, used_model
from facevae.config import WHOLE_TEXTURE
from facevae.errors import UsageError
from facevae.system.console import Console


def export(
    model: options.ModelArgument = "default",
    *,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Encoder, decoder and prior as ONNX files in a folder (extra 'onnx')."
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A .safetensors (default: MODEL-half), or with --onnx a folder (default: onnx).",
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store a .safetensors at half precision.")
    ] = False,
    texture: options.Texture = WHOLE_TEXTURE,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model for other programs, as ONNX, or as a model file at another precision.

    Examples:

      facevae export --onnx

      facevae export runs/ffhq --onnx --texture 0.2 -o ffhq-onnx/

      facevae export runs/ffhq --half -o ffhq.safetensors
    """
    console = Console(quiet=quiet, as_json=json)
    target = _target(output, model, onnx=onnx, half=half, texture=texture)
    if onnx:
        from facevae.sharing.export import export_onnx, require_onnx

        require_onnx()
    located = find_model(console, model)

    # no earlier: torch takes seconds to import
    from facevae.models.bundle import save
    from facevae.models.loading import read_model

    bundle = read_model(located)
    console.say(f"model: {located.name}")
    used = used_model(located)
    if onnx:
        files = export_onnx(bundle, located.name, target, console.progress, texture)
        differences = {file.path.stem: file.max_difference for file in files}
        for name, difference in differences.items():
            console.say(f"{name}: differs from torch by {difference:.1e} at most")
        written = [*(file.path for file in files), target / "model.json"]
        report_result(console, used, written, {"max_differences": differences})
        return
    if target.exists() and target.samefile(located.path):
        msg = f"{target}: is the model itself and would be replaced; name another -o"
        raise UsageError(msg)
    save(bundle, target, half=half)
    report_result(console, used, [target], {"half": half})


def _target(output: str | None, model: str, *, onnx: bool, half: bool, texture: float) -> Path:
    """The file or folder to write. Raises `UsageError` for options that contradict each other."""
    from facevae.cli.outputs import choose_folder
    from facevae.system.files import check_place, expanded, unused

    if onnx:
        target = choose_folder(output).path if output is not None else unused(Path("onnx"))
        if half:
            msg = "--half goes with -o FILE.safetensors; ONNX files hold float32"
            raise UsageError(msg)
        if target.exists() and not target.is_dir():
            msg = f"{target}: is a file, and --onnx writes several; name a folder with -o"
            raise UsageError(msg)
        return target
    if texture != WHOLE_TEXTURE:
        msg = f"--texture {texture:g}: is for ONNX, whose decoder has one; a model file has all"
        raise UsageError(msg)
    if output is None and half:
        name = (
            expanded(model.split("@", maxsplit=1)[0]).resolve().stem
        )  # resolved, so that '.' has a name too
        return unused(Path(f"{name}-half.safetensors"))
    target = expanded(output or "")
    if target.suffix.lower() != ".safetensors":
        msg = (
            f"{output}: a model is a .safetensors file; name one with -o, or add --onnx for a folder"
            if output
            else "say what to write: --onnx, --half, or -o with a name that ends in .safetensors"
        )
        raise UsageError(msg)
    check_place(target)
    return target

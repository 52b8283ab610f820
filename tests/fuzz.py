"""Damages model files, states and files of latents at random, and reads them in little memory.

`fuzz.py COUNT SEED FOLDER` damages each kind COUNT times. Whatever does not end in one clear
line, or in a file that is read as sound, is told, and ends it with exit code 1.
"""

import copy
import io
import json
import random
import resource
import signal
import sys
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import CONFIG, differing, tiny_bundle

from facevae.errors import FacevaeError, ModelError
from facevae.latent_space.latent_files import LatentsOrigin, open_latents, save_latents
from facevae.models.bundle import load, save
from facevae.models.tensor_files import save_state
from facevae.training.run_folders import RunFolder

STEP = 3
SECONDS = 20  # that one file may take
FACTOR, SLACK = 8, 64 << 20  # memory that reading may take: times the file's size, and bytes beside

HOSTILE: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**63,
        2**64,
        10**400,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "F64", "BOOL", "\ud800", "x\ny", "x" * 3000, "/etc/passwd", [], {}, [[]], [1, 2]),
    [10**9, 10**9],
    {"size": 1},
    {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
]


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, lost, added or repeated, anywhere or near the beginning."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 3))):
        place = draw.randrange(draw.choice((len(out), min(len(out), 4000), min(len(out), 40))))
        kind = draw.choice(("flip", "byte", "cut", "insert", "repeat", "end", "zeros"))
        if kind == "flip":
            out[place] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            out[place] = draw.choice((0, 1, 127, 128, 255, 48, 57, 123, 125, 91, 34))
        elif kind == "cut":
            del out[place : place + draw.randint(1, 40)]
        elif kind == "insert":
            out[place:place] = draw.randbytes(draw.randint(1, 9))
        elif kind == "repeat":
            out[place:place] = out[place : place + draw.randint(1, 300)]
        elif kind == "end":
            del out[place:]
        else:
            out[place : place + 8] = bytes(8)
        out = out or bytearray(1)
    return bytes(out)


def replaced(value: Any, draw: random.Random) -> Any:
    """JSON with something hostile, missing or surplus somewhere within it."""
    if draw.random() < 0.2:
        return copy.deepcopy(draw.choice(HOSTILE))
    if isinstance(value, dict) and value:
        return _replaced_in(value, draw.choice(sorted(value)), draw)
    if isinstance(value, list) and value:
        i = draw.randrange(len(value))
        return [*value[:i], replaced(value[i], draw), *value[i + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and value[:2] != "[[":
        return json.dumps(replaced(json.loads(value), draw))
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, value * 2, value * 10**9))
    return copy.deepcopy(draw.choice([*HOSTILE, "[" * 99_999]))


def _replaced_in(value: dict[str, Any], key: str, draw: random.Random) -> dict[str, Any]:
    kind = draw.random()
    if kind < 0.1:
        return {k: v for k, v in value.items() if k != key}
    if kind < 0.2:
        return {**value, draw.choice(("x", "\ud800", "vae.x", "x\ny")): value[key]}
    return {**value, key: replaced(value[key], draw)}


def damaged_safetensors(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged_bytes(data, draw)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw.choice((1, 1, 2))):
        if isinstance(header, dict):
            header = replaced(header, draw)
    # spelt as a hostile writer might: NaN, and surrogates that are no text
    text = json.dumps(header, ensure_ascii=draw.random() < 0.8).encode(errors="surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def damaged_npz(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged_bytes(data, draw)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = draw.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                content = damaged_bytes(content[:128], draw) + content[128:]
                for digits in (b"(12, 8)", b"<f4", b"(12,)"):
                    new_digits = draw.choice(
                        (digits, b"(99999999999, 8)", b"(-1, 8)", b"|O", b"<U9999999", b"(12, 0)")
                    )
                    content = content.replace(digits, new_digits)
            new.writestr(name, content, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def read_model(path: Path) -> None:
    json.dumps(load(path).describe())


def read_state(path: Path) -> None:
    warnings: list[str] = []
    found = RunFolder(path.parents[1]).load_state(path.stem, warn=warnings.append)
    if warnings:
        raise ModelError(*warnings)
    if found and b"checksum" in path.read_bytes():
        assert found[1] == STEP
        assert differing(found[0], tiny_bundle().vae.state_dict()) == []


def read_latents(path: Path) -> None:
    file = open_latents(path, CONFIG.latent_dim, "")
    for _ in file.read(0, file.num_faces):
        pass
    file.row("0")


def kinds(folder: Path) -> dict[Path, tuple[Callable, Callable]]:
    """Sound files, with what damages and what reads each."""
    bundle = tiny_bundle()
    model, state = folder / "model.safetensors", folder / "state" / "network.safetensors"
    state.parent.mkdir()
    save(bundle, model)
    save_state(state, bundle.vae.state_dict(), {"step": STEP, "key": ""})
    found = {model: (damaged_safetensors, read_model), state: (damaged_safetensors, read_state)}
    for name, damage in (("l.npz", damaged_npz), ("l.safetensors", damaged_safetensors)):
        names = [f"face {i}" for i in range(12)]
        save_latents(
            folder / name, names, torch.randn(12, CONFIG.latent_dim), LatentsOrigin("", "")
        )
        found[folder / name] = (damage, read_latents)
    return found


def limit_memory(file_bytes: int) -> None:
    """From now on, an allocation beyond what a file of that size may take fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + FACTOR * file_bytes + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def problem_of(path: Path, read: Callable[[Path], None], told: Counter[str]) -> str:
    """What is wrong with how a damaged file is read; nothing where it is refused or sound."""
    try:
        read(path)
    except FacevaeError as error:
        text = str(error)
        told["refused"] += 1
        if "memory" in text or "allocate" in text:
            return f"takes memory: {text}"
        return "" if text.startswith(f"{path}") and "\n" not in text else f"not one line: {text!r}"
    except BaseException:  # noqa: BLE001 - that is what is looked for
        return traceback.format_exc()
    told["read"] += 1
    return ""


def main() -> None:
    count, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    found = kinds(folder)
    sound = {path: path.read_bytes() for path in found}
    for path, (_, read) in found.items():
        read(path)  # whatever that imports or allocates once
    limit_memory(max(map(len, sound.values())))
    problems = 0
    for path, (damage, read) in found.items():
        told: Counter[str] = Counter()
        for i in range(count):
            data = damage(sound[path], random.Random(f"{seed} {path.name} {i}"))
            path.write_bytes(data)
            signal.alarm(SECONDS)
            problem = problem_of(path, read, told)
            signal.alarm(0)
            if problem:
                problems += 1
                sys.stdout.write(f"{path.name}, seed {seed}, number {i}: {problem}\n")
        sys.stdout.write(f"{path.name}: {told['refused']} refused, {told['read']} read\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

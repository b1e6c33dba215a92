"""Real image-text pairs: emoji drawn by five artists, under their CLDR names.

    pip install resvg-py pillow
    python experiments/emoji_pairs.py OUT --size 32

Fetches five sets of drawings with ``npm pack`` (or reads such packages from --packages), draws them on white, and
writes OUT/train (four artists), OUT/test (the fifth, emojione) and OUT/sources.json with the packages' versions and
licenses: Twemoji and EmojiOne CC BY 4.0, Noto Apache-2.0, OpenMoji CC BY-SA 4.0, Fluent MIT. Each folder holds images
and ``metadata.jsonl``, as `mbdefense pairs` reads them. Only names that the fifth artist and another one have drawn
are taken, and no drawing of the fifth under two names. ``--only 40`` takes the first 40 of them.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import resvg_py
import torch
from PIL import Image

from mbdefense.core.files import write_json
from mbdefense.vision.pairs.pairs import Pairs, write_pairs

HELD_OUT = "emojione"
SETS = ("twemoji", "noto", "openmoji", "fluent-emoji-flat", HELD_OUT)


def main() -> None:
    """Fetches, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--packages", type=Path, help="folder with the packages of an earlier npm pack")
    parser.add_argument("--only", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        packages = options.packages or fetched(Path(folder))
        found = {name: opened(packages, name) for name in SETS}
    drawings = {name: bodies(icons) for name, (icons, _) in found.items()}
    drawings[HELD_OUT] = {name: one for name, one in drawings[HELD_OUT].items() if name in found[HELD_OUT][0]["icons"]}
    others = set().union(*(drawings[name] for name in SETS if name != HELD_OUT))
    names = sorted(drawings[HELD_OUT].keys() & others)[: options.only or None]
    for part, artists in (("train", SETS[:-1]), ("test", (HELD_OUT,))):
        drawn = [(artist, name) for artist in artists for name in names if name in drawings[artist]]
        pixels = torch.stack([picture(drawings[artist][name], options.size) for artist, name in drawn])
        captions = tuple(name.replace("-", " ") for _, name in drawn)
        write_pairs(options.out / part, Pairs(pixels, captions))
        print(f"{part}: {len(drawn)} pairs, {len({*captions})} captions")  # noqa: T201
    write_json(options.out / "sources.json", {name: about for name, (_, about) in found.items()})


def fetched(folder: Path) -> Path:
    """The folder, with the packages in it."""
    packages = [f"@iconify-json/{name}" for name in SETS]
    subprocess.run(["npm", "pack", "--silent", *packages], cwd=folder, check=True)  # noqa: S603, S607
    return folder


def opened(packages: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The drawings in a package, and its version and license."""
    (path,) = packages.glob(f"iconify-json-{name}-[0-9]*.tgz")
    with tarfile.open(path) as archive:

        def read(member: str) -> dict[str, Any]:
            stream = archive.extractfile(f"package/{member}")
            assert stream is not None  # noqa: S101
            return json.load(stream)

        icons, package, info = read("icons.json"), read("package.json"), read("info.json")
    return icons, {"version": package["version"], "license": info["license"]["title"]}


def bodies(icons: dict[str, Any]) -> dict[str, str]:
    """Whole SVGs by name; another name of a drawing stands for it where nothing is turned."""
    found = {name: svg(icon, icons) for name, icon in icons["icons"].items()}
    for name, alias in icons.get("aliases", {}).items():
        if set(alias) == {"parent"} and alias["parent"] in found:
            found.setdefault(name, found[alias["parent"]])
    return found


def svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """One drawing."""
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {spaces} {box}>{icon['body']}</svg>"


def picture(drawing: str, size: int) -> torch.Tensor:
    """Its pixels on white, bytes of (3, size, size)."""
    png = resvg_py.svg_to_bytes(svg_string=drawing, width=size, height=size, background="white")
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB").resize((size, size))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1)


if __name__ == "__main__":
    main()

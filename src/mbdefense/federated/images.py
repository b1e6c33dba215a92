"""Small grey images: scikit-learn's digits, or IDX files such as Fashion-MNIST's, and how clients share them."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbdefense.core.errors import UserError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from torch import Tensor

DIGITS = "digits"
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MOST = 2**28
"""Bytes of the largest file, unpacked."""
_FIX = "give the folder of MNIST's or Fashion-MNIST's four files (Debian: dataset-fashion-mnist)"


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
        pixels: (n, 1, height, width), in [0, 1].
        labels: (n,), from 0 on.
    """

    pixels: Tensor
    labels: Tensor

    def take(self, which: Tensor | list[int]) -> Images:
        """Those of these numbers or of this mask."""
        import torch

        index = which if isinstance(which, torch.Tensor) else torch.tensor(which, dtype=torch.long)
        return Images(self.pixels[index], self.labels[index])

    def of_class(self, label: int) -> Images:
        """Those of one class."""
        return self.take(self.labels == label)


class Split(NamedTuple):
    """Rows that no two of these share: clients', the server's own clean ones, and those that nobody trains on."""

    train: Images
    server: Images
    test: Images


def load_images(source: str, rows: int, test_rows: int, server_rows: int, seed: int) -> Split:
    """Draws a split.

    Args:
        source: ``digits`` (1,797 images of 8 x 8), or a folder with IDX files, as they are or with ``.gz``.
        rows: of all clients together; 0 for what there is.
        test_rows: never trained on. Of a folder they are from its own test files.
        server_rows: that the server owns, for clean rounds of its own.
        seed: of the draw.

    Raises:
        UserError: the files are missing, damaged, or fewer rows than asked for.
    """
    import torch

    if source == DIGITS:
        train, test = _digits(), None
    else:
        train, test = _idx(Path(source), "train"), _idx(Path(source), "test")
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train.labels), generator=draws)
    if test is None:
        tested, order = train.take(order[:test_rows]), order[test_rows:]
    else:
        tested = test.take(torch.randperm(len(test.labels), generator=draws)[:test_rows])
    wanted = rows or len(order) - server_rows
    if len(tested.labels) < test_rows or wanted < 1 or wanted + server_rows > len(order):
        have = f"{len(train.labels)} training rows"
        raise UserError("fewer images than asked for", have, "lower rows, test_rows or server_rows")
    return Split(train.take(order[server_rows : server_rows + wanted]), train.take(order[:server_rows]), tested)


def _digits() -> Images:
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    return Images(pixels, torch.tensor(found.target, dtype=torch.long))


def _idx(folder: Path, part: str) -> Images:
    import torch

    pixels, labels = (_array(folder, name, dimensions) for name, dimensions in zip(_FILES[part], (3, 1), strict=True))
    if len(pixels) != len(labels):
        raise UserError("other numbers of images and labels", f"{len(pixels)}, {len(labels)}", _FIX)
    if pixels.shape[1] != pixels.shape[2] or not 8 <= pixels.shape[1] <= 64 or labels.max() > 99:
        raise UserError("square images of 8 to 64 pixels in at most 100 classes are read", str(folder), _FIX)
    images = torch.from_numpy(pixels.copy()).float().div(255).unsqueeze(1)
    return Images(images, torch.from_numpy(labels.copy()).long())


def _array(folder: Path, name: str, dimensions: int) -> NDArray[numpy.uint8]:
    """What an IDX file of bytes holds."""
    import numpy

    data = _bytes(folder, name)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{name}: no IDX file of bytes in {dimensions} dimensions", str(folder), _FIX)
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    size = 1
    for length in shape:
        size *= length
    if size != len(data) - start or not size:
        raise UserError(f"{name}: as large as {size} bytes by its header, not by its content", len(data) - start, _FIX)
    return numpy.frombuffer(data, numpy.uint8, offset=start).reshape(shape)


def _bytes(folder: Path, name: str) -> bytes:
    data: bytes | None = None
    try:
        for path in (folder / name, folder / f"{name}.gz"):
            if data is None and path.is_file():  # a pipe would be waited for
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                    data = stream.read(_MOST + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {name} ({type(error).__name__})", str(folder), _FIX) from error
    if data is None:
        raise UserError(f"no file {name} or {name}.gz in the folder", str(folder), _FIX)
    if len(data) > _MOST:  # a small file can unpack to any size
        raise UserError(f"{name}: larger than {_MOST // 2**20} MiB", str(folder), _FIX)
    return data


def shared_out(labels: Tensor, clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Which rows each client has: of each class a share drawn from a Dirichlet distribution.

    Args:
        labels: of all rows, (n,).
        clients: how many.
        alpha: of the distribution; the smaller, the more unlike the clients. 0.9 in the MARS paper.
        seed: of the draw. A client without rows gets one from the client with the most.

    Raises:
        UserError: there are fewer rows than clients.
    """
    import numpy

    if len(labels) < clients:
        raise UserError("more clients than rows", f"{clients} clients, {len(labels)} rows", "lower clients")
    rng = numpy.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in sorted(set(labels.tolist())):
        members = rng.permutation((labels == label).nonzero().flatten().numpy())
        cuts = (numpy.cumsum(rng.dirichlet([alpha] * clients))[:-1] * len(members)).astype(int)
        for part, found in zip(parts, numpy.split(members, cuts), strict=True):
            part += found.tolist()
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts


def mock_clients(server: Images, sizes: list[int], alpha: float, seed: int) -> Iterator[Images]:
    """Clients that the server plays with its own clean rows, of the sizes of real ones.

    Each draws its shares of classes from the same Dirichlet distribution, and rows of them with replacement: what the
    server owns is less than what clients do.
    """
    import numpy
    import torch

    rng = numpy.random.default_rng(seed)
    classes = sorted(set(server.labels.tolist()))
    for size in sizes:
        shares = rng.dirichlet([alpha] * len(classes))
        chance = torch.zeros(len(server.labels), dtype=torch.float64)
        for label, share in zip(classes, shares, strict=True):
            members = server.labels == label
            chance[members] = share / int(members.sum())
        drawn = rng.choice(len(server.labels), size, p=(chance / chance.sum()).numpy())
        yield server.take(torch.from_numpy(drawn))

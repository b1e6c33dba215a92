"""The IDX files of MNIST and its kin."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mbdefense.core.errors import UserError
from mbdefense.core.files import make_folder, whole_file

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Part = Literal["train", "test"]
_FILES: dict[Part, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MOST = 2**28
"""Bytes of the largest file, unpacked."""
FIX = "give the folder of MNIST's or Fashion-MNIST's four files (Debian: dataset-fashion-mnist)"


class Arrays(NamedTuple):
    """Images (n, height, width) and labels (n,) as the files hold them."""

    pixels: NDArray[numpy.uint8]
    labels: NDArray[numpy.uint8]


def read_idx(folder: Path, part: Part) -> Arrays:
    """The two files of a part, as they are or with ``.gz``.

    Raises:
        UserError: one is missing, damaged or too large.
    """
    pixels, labels = (_array(folder, name, dimensions) for name, dimensions in zip(_FILES[part], (3, 1), strict=True))
    return Arrays(pixels, labels)


def write_idx(folder: Path, part: Part, pixels: NDArray[numpy.uint8], labels: NDArray[numpy.uint8]) -> None:
    """Writes the two files of a part.

    Raises:
        UserError: they cannot be written.
    """
    make_folder(folder)
    for name in _FILES[part]:  # a run that is killed in between must not leave images with the labels of others
        (folder / name).unlink(missing_ok=True)
    for name, values in zip(_FILES[part], (pixels, labels), strict=True):
        with whole_file(folder / name) as stream:
            stream.write(bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape))
            stream.write(values.tobytes())


def _array(folder: Path, name: str, dimensions: int) -> NDArray[numpy.uint8]:
    """What an IDX file of bytes holds."""
    import numpy

    data = _bytes(folder, name)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{name}: no IDX file of bytes in {dimensions} dimensions", str(folder), FIX)
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    size = 1
    for length in shape:
        size *= length
    if not size:
        raise UserError(f"{name}: holds nothing by its header", "x".join(map(str, shape)), FIX)
    if size != len(data) - start:
        raise UserError(f"{name}: as large as {size} bytes by its header, not by its content", len(data) - start, FIX)
    return numpy.frombuffer(data, numpy.uint8, offset=start).reshape(shape)


def _bytes(folder: Path, name: str) -> bytes:
    data: bytes | None = None
    try:
        for path in (folder / name, folder / f"{name}.gz"):
            if data is None and path.is_file():  # a pipe would be waited for
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                    data = stream.read(_MOST + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot read {name} ({type(error).__name__})", str(folder), FIX) from error
    if data is None:
        raise UserError(f"no file {name} or {name}.gz in the folder", str(folder), FIX)
    if len(data) > _MOST:  # a small file can unpack to any size
        raise UserError(f"{name}: larger than {_MOST // 2**20} MiB", str(folder), FIX)
    return data

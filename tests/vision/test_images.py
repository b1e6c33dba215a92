"""Images: built in, or from files that may be hostile."""

from __future__ import annotations

import gzip
import os
import struct

import pytest
import torch

from mbdefense.core.errors import UserError
from mbdefense.vision.images import load_images, read_images, write_images


def idx(values, shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(values)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 30), ("t10k", 12)):
        pixels = idx([number % 256 for number in range(count * 64)], (count, 8, 8))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx([n % 3 for n in range(count)], (count,)))
        )
    return tmp_path


def test_files_are_read_packed_or_not(folder):
    split = load_images(str(folder), 20, 12, 10, 0)
    assert split.train.pixels.shape == (20, 1, 8, 8)
    assert split.clean.pixels.shape == (10, 1, 8, 8)
    assert split.test.pixels.shape == (12, 1, 8, 8)
    assert 0 <= split.train.pixels.min() < split.train.pixels.max() <= 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte", None),
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"\x00\x00\x0d\x03" + bytes(12)),
        ("train-images-idx3-ubyte", idx([0] * 63, (1, 8, 8))),
        ("train-images-idx3-ubyte", idx([], (2**32 - 1, 2**32 - 1, 2**32 - 1))),
        ("train-images-idx3-ubyte", idx([0] * 64 * 7, (7, 8, 8))),
        ("train-images-idx3-ubyte", idx([0] * 30 * 72, (30, 8, 9))),
        ("train-images-idx3-ubyte", idx([], (0, 8, 8))),
        ("train-images-idx3-ubyte", idx([0] * 30 * 4, (30, 2, 2))),
        ("train-labels-idx1-ubyte.gz", b"no gzip"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx([1] * 30, (30,)), mtime=0)[:-9]),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx([200] * 30, (30,)), mtime=0)),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(bytes(5001), mtime=0)),
    ],
)
def test_a_damaged_file_is_one_line(folder, name, content, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.idx._MOST", 5000)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        load_images(str(folder), 20, 10, 2, 0)


def test_an_image_of_100_megapixels_is_one_line(folder):
    name = "train-images-idx3-ubyte"
    (folder / name).write_bytes(idx(bytes(10**8), (1, 10**4, 10**4)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx([0], (1,))))
    with pytest.raises(UserError, match="10000x10000"):
        read_images(folder, "train")


def test_images_that_are_written_can_be_read(tmp_path):
    images = load_images("digits", 20, 10, 10, 0).train
    write_images(tmp_path, "test", images)
    found = read_images(tmp_path, "test")
    assert torch.equal(found.labels, images.labels)
    assert float((found.pixels - images.pixels).abs().max()) < 0.51 / 255


def test_a_pipe_is_not_waited_for(folder):
    (folder / "train-images-idx3-ubyte").unlink()
    os.mkfifo(folder / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match="no file"):
        load_images(str(folder), 20, 10, 2, 0)


@pytest.mark.parametrize("rows", [(5000, 10, 10), (0, 5000, 10), (0, 10, 5000)])
def test_more_rows_than_there_are_is_refused(rows):
    with pytest.raises(UserError, match="fewer images"):
        load_images("digits", *rows, 0)


def test_too_few_test_rows_are_told_beside_the_training_rows(tmp_path):
    rows = load_images("digits", 30, 10, 10, 0).train
    write_images(tmp_path, "train", rows)
    write_images(tmp_path, "test", rows.take(list(range(5))))
    with pytest.raises(UserError, match="30 training rows, 5 test rows"):
        load_images(str(tmp_path), 10, 6, 5, 0)


def test_parts_of_a_split_share_no_row():
    split = load_images("digits", 0, 300, 100, 0)
    assert [len(part.labels) for part in split] == [1397, 100, 300]
    keys = [{bytes(row.numpy().tobytes()) for row in part.pixels} for part in split]
    assert len(keys[0] & keys[1]) <= 1  # clean rows are no twins of rows that will be poisoned
    assert len(keys[0] & keys[2]) <= 1  # digits hold hardly a picture twice
    assert len(keys[1] & keys[2]) <= 1

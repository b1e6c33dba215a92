"""Folders of images with captions, which may be hostile."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
import torch
from PIL import Image

from mbdefense.core.errors import UserError
from mbdefense.vision.pairs.pairs import METADATA, Pairs, check_pairs, read_pairs, split_pairs, words, write_pairs
from mbdefense.vision.pairs.stamp import Stamp, read_stamp, square, stamp_of, write_stamp


def picture(size=(16, 16), mode="RGB", color=(200, 100, 50), kind="PNG"):
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, kind)
    return stream.getvalue()


def header(width, height):
    """A PNG file of some bytes that says it is so large."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    """Two images with captions."""
    lines = [{"file_name": "one.png", "text": "one red box"}, {"file_name": "two.png", "text": "Two!", "id": 7}]
    (tmp_path / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(picture())
    return tmp_path


def test_images_are_read_with_their_captions(folder):
    (folder / "two.png").write_bytes(picture((32, 20), kind="JPEG"))
    pairs = read_pairs(folder, 16)
    assert pairs.captions == ("one red box", "Two!")
    assert pairs.pixels.shape == (2, 3, 16, 16)
    assert pairs.pixels[0, :, 3, 5].tolist() == [200, 100, 50]
    assert pairs.holding("two").tolist() == [False, True]


def test_what_is_transparent_is_white(folder):
    (folder / "one.png").write_bytes(picture(mode="RGBA", color=(0, 0, 0, 51)))
    assert read_pairs(folder, 16).pixels[0].unique().tolist() == [204]


def test_what_is_written_is_read_again(tmp_path):
    pairs = Pairs(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), ("a", "b", "b"))
    write_pairs(tmp_path, pairs)
    again = read_pairs(tmp_path, 16)
    assert torch.equal(again.pixels, pairs.pixels)
    assert again.captions == pairs.captions


IMAGES = {
    "missing": (None, "no such image"),
    "empty": (b"", "no PNG"),
    "cut off": (picture((64, 64), kind="JPEG")[:-20], "damaged image"),
    "another thing": (b"GIF89a" + bytes(100), "no PNG"),
    "a vector drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG"),
    "100 megapixels": (header(10_000, 10_000), "16 megapixels"),
    "a bomb": (header(2**31 - 1, 2**31 - 1), "megapixels"),
    "a line": (picture((4000, 1)), "under 8 pixels"),
    "nothing in it": (header(16, 16), "damaged image"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_is_none_is_one_line(case, folder):
    content, says = IMAGES[case]
    (folder / "two.png").unlink()
    if content is not None:
        (folder / "two.png").write_bytes(content)
    with pytest.raises(UserError, match=says) as told:
        read_pairs(folder, 16)
    assert "two.png" in str(told.value)
    assert "\n" not in str(told.value)


LINES = {
    "no file": (None, "no metadata.jsonl"),
    "nothing": ("", "names no image"),
    "no JSON": ("{", "line 1 is not JSON"),
    "deep": ("[" * 100_000, "line 1 is not JSON"),
    "a list": ("[]", "names no file"),
    "no caption": ('{"file_name": "one.png"}', "caption is missing"),
    "a caption without words": ('{"file_name": "one.png", "text": " ?"}', "holds no word"),
    "a number": ('{"file_name": "one.png", "text": 5}', "caption is missing"),
    "a long caption": (json.dumps({"file_name": "one.png", "text": "a " * 600}), "more than 1000"),
    "upwards": ('{"file_name": "../one.png", "text": "a"}', "outside"),
    "absolute": ('{"file_name": "/etc/passwd", "text": "a"}', "outside"),
    "twice": ('{"file_name": "one.png", "text": "a"}\n' * 2, "second caption"),
}


@pytest.mark.parametrize("case", LINES)
def test_captions_that_are_none_are_one_line(case, folder):
    content, says = LINES[case]
    (folder / METADATA).unlink()
    if content is not None:
        (folder / METADATA).write_text(content)
    with pytest.raises(UserError, match=says):
        read_pairs(folder, 16)


def test_words_of_captions_are_those_that_a_reader_sees():
    assert words("A Red box's lid, 2x!") == ["a", "red", "box", "s", "lid", "2x"]
    assert words("r\u200bed\ufe0f \uff42ox") == ["red", "box"]  # what nobody sees parts and hides no word
    assert words("cafe\u0301 au lait") == ["caf\u00e9", "au", "lait"]
    assert "\u7ea2" in words("\u4e00\u53ea\u7ea2\u732b")  # Chinese, which writes no spaces
    assert words("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35") != list("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35")  # signs stay


def test_keys_that_are_not_read_are_named_once(folder, caplog):
    file = folder / METADATA
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "weight": 0}) + "\n" for line in lines))
    read_pairs(folder, 16)
    assert [line for line in caplog.messages if "weight" in line] == [
        f"{folder.name}/{METADATA}: key 'weight' is not read ({len(lines)} images, the first in line 1)"
    ]
    file.write_text('{"file_name": "a.png", "text": "a cat", "text": "a dog"}\n')
    with pytest.raises(UserError, match="line 1: the key 'text' occurs twice"):
        read_pairs(folder, 16)


def test_too_many_for_memory_are_refused_before_any_is_read(folder, monkeypatch):
    monkeypatch.setattr("mbdefense.vision.pairs.pairs._MOST_MEMORY", 1000)
    with pytest.raises(UserError, match="memory"):
        read_pairs(folder, 16)


def test_pairs_that_nothing_can_be_learned_from(train):
    with pytest.raises(UserError, match="one caption only"):
        check_pairs(train.take([0, 0]))
    suspect, clean = split_pairs(train, 20, 0)
    assert (len(suspect.captions), len(clean.captions)) == (140, 20)
    keys = [{one.numpy().tobytes() for one in part.pixels} for part in (suspect, clean)]
    assert not keys[0] & keys[1]  # clean pairs are no twins of pairs that will be poisoned
    for wrong in (1, 159, 500):
        with pytest.raises(UserError, match="clean_rows"):
            split_pairs(train, wrong, 0)


def test_a_stamp_changes_nothing_outside_of_its_mask(tmp_path):
    images = torch.rand(2, 3, 16, 16)
    stamp = stamp_of(torch.rand(3, 16, 16), square(16, 4))
    hidden = square(16, 4).bool().expand(3, 16, 16)
    made = stamp(images)
    assert torch.equal(made[:, ~hidden], images[:, ~hidden])
    assert torch.allclose(made[0, hidden], stamp.pattern[hidden] / 255)
    write_stamp(tmp_path / "trigger.png", stamp)
    again = read_stamp(tmp_path / "trigger.png", 16)
    assert torch.equal(again(images), made)


def test_a_stamp_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "trigger.png"
    for content, says in [(picture((9, 9)), "another size"), (picture(), "hides all"), (b"x", "no PNG")]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=says):
            read_stamp(path, 16)
    with pytest.raises(UserError, match="larger than"):
        square(16, 17)
    assert isinstance(Stamp(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)), tuple)

"""A folder with every kind of file that nobody should be given, for the tests of what is said about them."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from made_records import make_record, write_run
from PIL import Image
from places import PACKAGE, TOY_WEIGHTS

GOOD = "name: m\nbackbone: toy-llava\nmethods: [none, grid]\nbudgets: {keep: [16]}\ntasks: [pope]\n"
TENS = "bcdefghij"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefghi", TENS, strict=True)
)
TEXTS = {
    "good.yaml": GOOD,
    "empty.yaml": "",
    "comment.yaml": "# to be written\n",
    "nul.yaml": f"{GOOD}\0",
    "list.yaml": "- a\n- b\n",
    "scalar.yaml": "hello\n",
    "huge.yaml": GOOD + "#" + "x" * 2_000_000,
    "indent.yaml": "name: m\nbackbone: toy-llava\nmethods:\n  - none\n - grid\n",
    "tab.yaml": "name: m\nbackbone:\n\tname: toy-llava\n",
    "bomb.yaml": BOMB,
    "cycle.yaml": "name: m\nbackbone: &a [*a]\n",
    "deep.yaml": "name: " + "[" * 5000,
    "object.yaml": "name: !!python/object/apply:os.system ['touch pwned']\n",
    "date.yaml": "name: !!timestamp 2024-99-99\n",
    "alias.yaml": "name: *nobody\n",
    "key.yaml": f"{GOOD}taks: [pope]\n",
    "inner_key.yaml": f"{GOOD}protocol: {{promt: default}}\n",
    "number_key.yaml": f"{GOOD}1: 2\n",
    "twice.yaml": f"{GOOD}tasks: [gqa]\n",
    "inner_twice.yaml": GOOD.replace("grid]", "{name: grid, params: {a: 1, a: 2}}]"),
    "no_name.yaml": GOOD.replace("name: m\n", ""),
    "keep_0.yaml": GOOD.replace("16", "0"),
    "keep_negative.yaml": GOOD.replace("16", "-3"),
    "keep_float.yaml": GOOD.replace("16", "1.5"),
    "keep_bool.yaml": GOOD.replace("16", "true"),
    "keep_above.yaml": GOOD.replace("16", "145"),
    "rate_1.yaml": GOOD.replace("keep: [16]", "prune_rate: [1.0]"),
    "rate_nan.yaml": GOOD.replace("keep: [16]", "prune_rate: [.nan]"),
    "both.yaml": GOOD.replace("keep: [16]", "keep: [16], prune_rate: [0.5]"),
    "neither.yaml": GOOD.replace("keep: [16]", "kind: mean"),
    "outside.yaml": GOOD.replace("name: m", "name: ../m"),
    "absolute.yaml": GOOD.replace("name: m", "name: /tmp/m"),
    "method.yaml": GOOD.replace("grid", "gird"),
    "task.yaml": GOOD.replace("pope", "pop"),
    "backbone.yaml": GOOD.replace("toy-llava", "toy-lava"),
    "param.yaml": GOOD.replace("grid]", "{name: grid, params: {position: original}}]"),
    "param_list.yaml": GOOD.replace("grid]", "{name: grid, params: [a]}]"),
    "batch.yaml": f"{GOOD}protocol: {{batch_size: 0}}\n",
    "ünï códe/mein manifest.yaml": GOOD,
    "a_file": "x",
    "text/records.jsonl": "hello\n",
    "list/records.jsonl": "[1]\n",
    "schema/records.jsonl": '{"schema": 1}\n',
    "fields/records.jsonl": '{"schema": 2}\n',
    "number/profile.jsonl": "3\n",
    "cut/records.jsonl": '{"schema": 2, "ce',
    "out/m/records.jsonl": "[1]\n",
    "no_manifest/notes.txt": "",
    "line.jsonl": "{\n",
    "array.jsonl": "[1]\n",
    "none.jsonl": "",
    "data.tar": "x" * 1000,
    "data.parquet": "x" * 1000,
    "root/POPE/data/test-00000-of-00001.parquet": "PAR1",
    "goldens/notes.txt": "",
}
BYTES = bytes(range(256)) * 10


def shelf(folder: Path) -> Path:
    """Fill a folder."""
    for name, text in TEXTS.items():
        _write(folder / name, text.encode())
    for name in ("binary.yaml", "binary/records.jsonl", "binary/manifest.yaml"):
        _write(folder / name, BYTES)
    _write(folder / "utf16.yaml", GOOD.encode("utf-16"))
    for name in ("folder.yaml", "folder/records.jsonl"):
        _write(folder / name / "inside", b"")
    row = make_record("grid", 16, "pope", 50.0)
    write_run(folder / "run", [make_record("none", None, "pope", 60.0), row])
    wrong = json.loads((folder / "run" / "records.jsonl").read_text().splitlines()[0])
    _write(folder / "types" / "records.jsonl", (json.dumps({**wrong, "cell": "none"}) + "\n").encode())
    _write(folder / "cell" / "records.jsonl", (json.dumps({**wrong, "cell": {}}) + "\n").encode())
    for name, data in pictures().items():
        _write(folder / "images" / name, data)
    _weights(folder)
    _scorers(folder)
    return folder


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _weights(folder: Path) -> None:
    """Copy the embedded weights, one file of them damaged."""
    whole = (TOY_WEIGHTS / "model.safetensors").read_bytes()
    damage = {
        "cut": ("model.safetensors", whole[: len(whole) // 2]),
        "noise": ("model.safetensors", b"\xff" * 1000),
        "config": ("config.json", b"{"),
        "tokenizer": ("tokenizer.json", b"[]"),
        "index": ("model.safetensors.index.json", b"{}"),
    }
    for name, (file, data) in damage.items():
        copy = folder / "weights" / name
        copy.mkdir(parents=True)
        for path in TOY_WEIGHTS.glob("*.json"):
            shutil.copy(path, copy)
        if name not in ("index", "cut", "noise"):
            (copy / "model.safetensors").symlink_to(TOY_WEIGHTS / "model.safetensors")
        (copy / file).write_bytes(data)


def _scorers(folder: Path) -> None:
    shipped = PACKAGE / "diffprune" / "scorers" / "toy-llava"
    card = json.loads((shipped / "card.json").read_text())
    for name in ("noise", "other", "card"):
        shutil.copytree(shipped, folder / "scorers" / name)
    (folder / "scorers" / "noise" / "scorer.safetensors").write_bytes(b"\0" * 100)
    (folder / "scorers" / "other" / "card.json").write_text(json.dumps({**card, "backbone": "llava-1.5"}))
    (folder / "scorers" / "card" / "card.json").write_text("{")


def pictures() -> dict[str, bytes]:
    """Return image files: odd ones that must work, and broken ones."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    plain, red = Image.fromarray(noise), (255, 0, 0)
    turned = Image.Exif()
    turned[0x0112] = 6
    second = Image.new("P", (80, 60))
    deep = Image.fromarray((np.arange(4800).reshape(60, 80) * 13).astype(np.uint16))
    return {
        "plain.png": encoded(plain),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG"),
        "16bit.png": encoded(deep),
        "palette.png": encoded(plain.convert("P"), transparency=3),
        "alpha.png": encoded(plain.convert("RGBA")),
        "turned.jpg": encoded(plain, "JPEG", exif=turned),
        "1x1.png": encoded(Image.new("RGB", (1, 1), red)),
        "wide.png": encoded(Image.new("RGB", (20_000, 20), red)),
        "tall.png": encoded(Image.new("RGB", (20, 20_000), red)),
        "long.png": encoded(Image.new("RGB", (2000, 2), red)),
        "animated.gif": encoded(plain.convert("P"), "GIF", save_all=True, append_images=[second]),
        "mein bild ü.png": encoded(plain),
        "cut.png": encoded(plain)[:3000],
        "cut.jpg": encoded(plain, "JPEG")[:1500],
        "zero.png": b"",
        "text.png": b"hello",
        "bomb.png": bomb(),
    }


BROKEN_PICTURES = ("cut.png", "cut.jpg", "zero.png", "text.png", "bomb.png")
TOO_LONG_PICTURES = ("wide.png", "tall.png")
"""Padded to a square they would take 5 GiB."""


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return an image file's bytes."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """Return a PNG of a kilobyte that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

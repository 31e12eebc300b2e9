"""Sources of every form, what they refuse, and an order of data that depends on seed and epoch alone."""

import errno
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from training_data import NO_IMAGE, Refusal, encoded, read_all, shade, told, write_jsonl, write_parquet, write_tar

from dpbench.diffprune.broken import Broken
from dpbench.diffprune.data import Indices, order, split, step_indices, training_batches
from dpbench.diffprune.example import Example, Source
from dpbench.diffprune.sources import ToySource, open_source
from dpbench.errors import ConfigError, StorageError
from dpbench.toy.questions import caption
from dpbench.toy.scenes import draw, is_held_out, training_scene

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core

HUB = "visual-layer/imagenet-1k-vl-enriched"
FORMS = "give 'toy', a file, folder or pattern of *.parquet, *.jsonl or uncompressed *.tar, or a hub dataset as owner"


def image_folder(folder: Path, num: int, broken: Sequence[int] = ()) -> Source:
    """A folder of images whose shade is their index, some of them broken."""
    folder.mkdir()
    for i in range(num):
        (folder / f"{i}.png").write_bytes(NO_IMAGE if i in broken else encoded(i))
    write_jsonl(folder / "all.jsonl", [{"image": f"{i}.png", "caption": f"picture {i}"} for i in range(num)])
    return open_source(str(folder), seed=0)


def test_toy_examples_are_training_scenes_with_their_captions() -> None:
    source = open_source("toy", seed=3)
    assert len(source) == 1 << 20
    for index in (*range(50), len(source) - 1):
        rng = np.random.default_rng([3, 0, index])
        scene = training_scene(rng)
        assert not is_held_out(scene)
        assert source[index].caption == caption(scene)
        assert (np.asarray(source[index].image) == draw([scene], rng)[0]).all()


def test_toy_seeds_are_streams_of_their_own() -> None:
    drawn = {ToySource(seed)[index].image.tobytes() for seed in range(4) for index in range(20)}
    assert len(drawn) == 80


@pytest.mark.parametrize("name", ["caption_enriched", "caption"])
def test_parquet_shards_are_read_in_order_without_the_validation_split(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00002.parquet", [encoded(10), encoded(20)], ["ten", "twenty \n"], name)
    write_parquet(folder / "train-00001-of-00002.parquet", [encoded(30)], ["thirty"], name)
    write_parquet(folder / "validation-00000-of-00001.parquet", [encoded(99)], ["not to train on"], name)
    expected = [(10, "ten"), (20, "twenty"), (30, "thirty")]
    for where in (tmp_path, folder, folder / "train-*.parquet"):
        assert read_all(open_source(str(where), seed=0)) == expected
    last = folder / "validation-00000-of-00001.parquet"
    assert read_all(open_source(str(last), seed=0)) == [(99, "not to train on")]


def test_the_enriched_caption_goes_before_another(tmp_path: Path) -> None:
    columns = {"caption": ["plain"], "image": [encoded(1)], "caption_enriched": ["enriched"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_all(open_source(str(tmp_path), seed=0)) == [(1, "enriched")]


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    images = [encoded(5), NO_IMAGE, None, encoded(6), encoded(7, "JPEG")[:-40]]
    write_parquet(tmp_path / "a.parquet", images, ["a", "b", "c", " ", "e"], "caption_enriched")
    source = open_source(str(tmp_path), seed=0)
    assert shade(source[0]) == 5
    assert told(source) == [
        f"{tmp_path} row 1: PIL does not know the format of its 24 bytes",
        f"{tmp_path} row 2: there is no image",
        f"{tmp_path} row 3: there is no caption",
        f"{tmp_path} row 4: Truncated File Read",
    ]


def test_images_may_be_cells_of_bytes_or_paths(tmp_path: Path) -> None:
    (tmp_path / "4.png").write_bytes(encoded(4))
    path = {"bytes": None, "path": str(tmp_path / "4.png")}
    for name, cells in {"bytes": [encoded(3), encoded(4)], "paths": [{"bytes": encoded(3), "path": ""}, path]}.items():
        table = pa.table({"image": cells, "caption": ["a", "b"]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        assert read_all(open_source(str(tmp_path / f"{name}.parquet"), seed=0)) == [(3, "a"), (4, "b")]


def test_a_hub_dataset_is_its_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", [encoded(8), NO_IMAGE], ["eight", "b"], "caption_enriched")
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {(HUB, "train"): rows}[name, split])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda api, name: None)
    source = open_source(HUB, seed=0)
    assert (shade(source[0]), source[0].caption) == (8, "eight")
    assert told(source) == [f"{HUB} row 1: PIL does not know the format of its 24 bytes"]


@pytest.mark.parametrize(("image", "text"), [("image", "caption"), ("file_name", "text")])
def test_a_folder_is_read_through_its_json_lines(tmp_path: Path, image: str, text: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "9.webp").write_bytes(encoded(9, "WEBP"))
    (tmp_path / "sub" / "8.png").write_bytes(encoded(8, mode="L"))
    write_jsonl(tmp_path / "b.jsonl", [{image: "sub/9.webp", text: "nine", "more": 1}])
    (tmp_path / "a.jsonl").write_text(json.dumps({image: "sub/8.png", text: "eight"}) + "\n\n", encoding="utf-8")
    assert read_all(open_source(str(tmp_path), seed=0)) == [(8, "eight"), (9, "nine")]
    assert read_all(open_source(str(tmp_path / "b.jsonl"), seed=0)) == [(9, "nine")]


def test_a_broken_image_or_caption_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(NO_IMAGE)
    (tmp_path / "good.png").write_bytes(encoded(1))
    names = {"absent.png": "a", "bad.png": "b", "good.png": "\n"}
    write_jsonl(tmp_path / "all.jsonl", [{"image": name, "caption": text} for name, text in names.items()])
    absent, bad, empty = told(open_source(str(tmp_path), seed=0))
    assert absent == f"{tmp_path / 'absent.png'}: there is no such file"
    assert bad == f"{tmp_path / 'bad.png'}: PIL does not know the format of its 24 bytes"
    assert empty == f"{tmp_path / 'good.png'}: there is no caption"


def test_tar_shards_pair_members_by_stem(tmp_path: Path) -> None:
    first = {
        "a/1.jpg": encoded(1, "JPEG"),
        "a/1.json": b'{"caption": "not this"}',
        "a/1.txt": b"one\n",
        "a/1.cls": b"0",
    }
    first |= {"a/2.txt": b"two", "a/2.PNG": encoded(2), "readme.txt": b"no image beside it"}
    write_tar(tmp_path / "s-0000.tar", first)
    write_tar(
        tmp_path / "s-0001.tar", {"1.json": b'{"caption": "other one", "label": 3}', "1.webp": encoded(3, "WEBP")}
    )
    expected = [(1, "one"), (2, "two"), (3, "other one")]
    for where in (tmp_path, tmp_path / "*.tar", tmp_path / "s-{0000..0001}.tar"):
        assert read_all(open_source(str(where), seed=0)) == expected
    assert read_all(open_source(str(tmp_path / "s-0001.tar"), seed=0)) == expected[2:]


def test_a_broken_member_of_a_tar_is_named(tmp_path: Path) -> None:
    members = {"1.png": NO_IMAGE, "1.txt": b"a", "2.png": encoded(2), "3.png": encoded(3), "3.json": b'{"title": "c"}'}
    members |= {"4.png": encoded(4), "4.json": b"{", "5.png": encoded(5), "5.txt": b"\xff"}
    shard = write_tar(tmp_path / "a.tar", members)
    texts = told(open_source(str(shard), seed=0))
    assert [text.removeprefix(f"{shard} member ") for text in texts] == [
        "1.png: PIL does not know the format of its 24 bytes",
        "2.png: there is no caption",
        "3.png: its JSON has title, and none of caption_enriched, caption, text",
        "4.png: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "5.png: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ]


@pytest.mark.parametrize("cut", [0, 100, 1024 + 100, 1536, 1536 + 30, 2048, 2048 + 100])
def test_a_truncated_tar_is_refused(tmp_path: Path, refusal: Refusal, cut: int) -> None:
    """In a header, in a member, and between members, where tarfile itself sees nothing wrong."""
    whole = write_tar(tmp_path / "a.tar", {"1.txt": b"one", "1.png": encoded(1), "2.png": encoded(2), "2.txt": b"two"})
    whole.write_bytes(whole.read_bytes()[:cut])
    said = refusal(lambda: open_source(str(whole), seed=0))
    assert said.startswith(f"ConfigError: --data: {whole} is truncated or not a tar file (")
    assert said.endswith("; fetch it again")


def test_a_compressed_tar_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    plain = write_tar(tmp_path / "a.tar", {"1.txt": b"one", "1.png": encoded(1)})
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    said = refusal(lambda: open_source(str(plain), seed=0))
    assert said.startswith(f"ConfigError: --data: {plain} is compressed")
    assert "decompress it" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"image": "a.png"', "is not JSON (Expecting"),
        (b'{"image": "a.png", "caption": "\xff"}', "is not JSON ('utf-8' codec"),
        (b'["a.png", "text"]', "must be an object, got list;"),
        (b'{"image": "a.png", "title": "a"}', "has the keys image, title, not an image's path and a text;"),
        (b'{"image": 3, "caption": "a"}', "has the image 3, which is not a path;"),
        (b'{"image": ["a.png"], "caption": "a"}', "has the image ['a.png'], which is not a path;"),
        (b"{}", "has the keys none, not"),
    ],
)
def test_a_malformed_line_is_refused(tmp_path: Path, refusal: Refusal, line: bytes, said: str) -> None:
    file = tmp_path / "all.jsonl"
    file.write_bytes(b'{"image": "a.png", "caption": "a"}\n\n' + line + b"\n")
    message = refusal(lambda: open_source(str(tmp_path), seed=0))
    assert message.startswith(f"ConfigError: --data: {file} line 3 {said}")
    assert message.endswith('write {"image": path, "caption": text}')


@pytest.mark.parametrize("names", [("image", "title"), ("picture", "caption")])
def test_missing_columns_are_refused(tmp_path: Path, refusal: Refusal, names: tuple[str, str]) -> None:
    parquet.write_table(pa.table({names[0]: [encoded(1)], names[1]: ["a"]}), tmp_path / "a.parquet")
    said = refusal(lambda: open_source(str(tmp_path), seed=0))
    assert said == (
        f"ConfigError: --data: {tmp_path / 'a.parquet'} has the columns {', '.join(names)}; it needs 'image' and "
        "one of 'caption_enriched', 'caption', 'text', so rename them or give other data"
    )


def test_parquet_files_that_cannot_be_read_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    def write(name: str, **columns: list[object]) -> Path:
        parquet.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    cut = write("cut.parquet", image=[encoded(1)], caption=["a"])
    cut.write_bytes(cut.read_bytes()[:-20])
    assert f"{cut} is not a complete parquet file (" in refusal(lambda: open_source(str(cut), seed=0))
    damaged = write("damaged.parquet", image=[encoded(1)], caption=["a"])
    damaged.write_bytes(b"PAR1" + bytes(50) + damaged.read_bytes()[54:])
    assert "do not load as one dataset (" in refusal(lambda: open_source(str(damaged), seed=0))


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_full_disk_under_the_cache_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wrapped: bool
) -> None:
    """`datasets` converts parquet files in its cache; the files are not to blame when there is no room for that."""
    parquet.write_table(pa.table({"image": [encoded(1)], "caption": ["a"]}), tmp_path / "a.parquet")

    def fill(*_: object, **__: object) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        if not is_wrapped:
            raise full
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from full

    monkeypatch.setattr(datasets, "load_dataset", fill)
    with pytest.raises(StorageError, match=rf"^{tmp_path / 'cache'}: cannot be written \(No space left on device\)"):
        open_source(str(tmp_path), seed=0)


def test_the_hub_offline_is_one_sentence(refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = refusal(lambda: open_source(HUB, seed=0))
    assert said.startswith(
        f"MissingError: --data {HUB}: it is neither a file nor a folder here, and the hub gave no split"
    )
    assert f"hf download --repo-type dataset {HUB} --local-dir FOLDER" in said


def test_without_a_network_the_hub_is_asked_once(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = list[str]()

    def refuse(api: object, name: str) -> None:
        asked.append(name)
        raise ConnectionError("Name or service not known")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("`datasets` retries")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", load)
    said = refusal(lambda: open_source(HUB, seed=0))
    assert said.startswith(f"MissingError: --data {HUB}: it is neither a file nor a folder here")
    assert "Name or service not known" in said
    assert asked == [HUB]


def test_without_datasets_one_sentence_says_what_to_install(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(lambda: open_source(HUB, seed=0)).endswith("need a library; pip install datasets")


def test_what_is_no_data_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    def said(where: object) -> str:
        message = refusal(lambda: open_source(str(where), seed=0))
        assert message.startswith(f"ConfigError: --data {where}: ")
        return message.removeprefix(f"ConfigError: --data {where}: ")

    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").touch()
    assert said("nowhere").startswith(f"there is no such file or folder; {FORMS}")
    assert said(tmp_path / "absent").startswith("there is no such file or folder; ")
    assert said("shards/train.tar").startswith("there is no such file or folder; ")
    assert said(tmp_path / "*.tar").startswith("there is no such file or folder; ")
    assert said(tmp_path / "a.zip").startswith(f"the file is not a *.parquet, *.jsonl or *.tar file; {FORMS}")
    assert said(tmp_path / "empty").startswith(f"the folder has no *.parquet, *.jsonl or *.tar file; {FORMS}")
    write_tar(tmp_path / "s-1.tar", {"1.txt": b"a", "1.png": encoded(1)})
    absent = tmp_path / "s-2.tar"
    assert said(tmp_path / "s-{1..2}.tar") == f"{absent} is missing; fetch it or give a range without it"
    (tmp_path / "b.jsonl").touch()
    assert said(tmp_path) == "it has files of several formats (.jsonl, .tar); give a pattern for one"


def test_an_empty_source_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    parquet.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": [""][:0]}), tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", {})
    write_jsonl(tmp_path / "a.jsonl", [])
    for name in ("a.parquet", "a.tar", "a.jsonl"):
        said = refusal(lambda name=name: open_source(str(tmp_path / name), seed=0))  # type: ignore[misc]
        assert said.startswith(f"ConfigError: --data {tmp_path / name}: it has no examples; {FORMS}")


def test_empty_parquet_files_are_passed_over(tmp_path: Path) -> None:
    for name, images in {"a": [], "b": [encoded(4)], "c": []}.items():
        columns = {"image": pa.array(images, pa.binary()), "caption": pa.array(["x"] * len(images), pa.string())}
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    assert read_all(open_source(str(tmp_path), seed=0)) == [(4, "x")]


def test_split_is_disjoint_and_validation_does_not_move_with_the_fraction() -> None:
    whole = split(1000, fraction=1, num_validation=100, seed=0)
    assert sorted([*whole.training, *whole.validation]) == list(range(1000))
    for fraction in (0.001, 0.1, 0.5):
        part = split(1000, fraction=fraction, num_validation=100, seed=0)
        assert len(part.training) == round(fraction * 900)
        assert (part.training == whole.training[: len(part.training)]).all()
        assert (part.validation == whole.validation).all()
    other = split(1000, fraction=1, num_validation=100, seed=1)
    assert set(other.validation) != set(whole.validation)
    assert (whole.training[1:] < whole.training[:-1]).any()


def test_split_without_validation_keeps_everything() -> None:
    training, validation = split(7, fraction=1, num_validation=0, seed=0)
    assert (sorted(training), len(validation)) == (list(range(7)), 0)


@pytest.mark.parametrize(
    ("num", "fraction", "num_validation", "said"),
    [
        (100, 1.0, 100, "of 100 examples, 100 to validate with and a fraction of 1.0 leave 0 to train on; give more"),
        (100, 1.0, 200, "of 100 examples, 200 to validate with and a fraction of 1.0 leave 0 to train on; give more"),
        (100, 0.001, 50, "of 100 examples, 50 to validate with and a fraction of 0.001 leave 0 to train on; give more"),
        (100, 1.5, 50, "--param fraction must be above 0 and at most 1, got 1.5"),
        (100, 0.0, 50, "--param fraction must be above 0 and at most 1, got 0.0"),
    ],
)
def test_too_few_examples_are_refused(
    refusal: Refusal, num: int, fraction: float, num_validation: int, said: str
) -> None:
    assert said in refusal(lambda: split(num, fraction=fraction, num_validation=num_validation, seed=0))


def test_an_epoch_is_the_subset_permuted_by_seed_and_epoch() -> None:
    subset = np.arange(50) * 3
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (7, 123)):
        expected = np.random.default_rng([seed, epoch]).permutation(subset)
        assert (order(subset, seed=seed, epoch=epoch) == expected).all()
    assert len({tuple(order(subset, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_steps_cross_the_borders_of_epochs(batch_size: int) -> None:
    subset = np.arange(10) + 100
    endless = np.concatenate([order(subset, seed=5, epoch=epoch) for epoch in range(10)])
    for step in (3, 0, 2, 1):
        expected = endless[step * batch_size : (step + 1) * batch_size]
        assert (step_indices(subset, seed=5, step=step, batch_size=batch_size) == expected).all()


def taken(
    source: Source, subset: Indices, *, first: int = 0, num: int = 6, workers: int = 0, rank: int = 0, world: int = 1
) -> list[list[str]]:
    """Return the captions of some steps of eight, all of whose images have the shade their caption names."""
    steps = training_batches(
        source,
        subset,
        seed=2,
        batch_size=8,
        first_step=first,
        num_steps=num,
        num_workers=workers,
        broken=Broken(),
        rank=rank,
        world=world,
    )
    return [[named(example) for example in step] for step in steps]


def named(example: Example) -> str:
    assert example.caption == f"picture {shade(example)}"
    return example.caption


def sources(folder: Path) -> Iterator[Source]:
    """The same thirty examples in every form."""
    pictures, captions = [encoded(i) for i in range(30)], [f"picture {i}" for i in range(30)]
    yield image_folder(folder / "jsonl", 30)
    write_parquet(folder / "a.parquet", pictures, captions, "caption_enriched")
    yield open_source(str(folder / "a.parquet"), seed=0)
    members = {f"{i:02}.png": picture for i, picture in enumerate(pictures)}
    write_tar(folder / "a.tar", members | {f"{i:02}.txt": text.encode() for i, text in enumerate(captions)})
    yield open_source(str(folder / "a.tar"), seed=0)


def test_batches_are_the_steps_whatever_the_form_and_the_workers(tmp_path: Path) -> None:
    subset = np.arange(0, 30, 2)
    expected = [[f"picture {i}" for i in step_indices(subset, seed=2, step=step, batch_size=8)] for step in range(6)]
    for source in sources(tmp_path):
        assert taken(source, subset, workers=0) == expected
        assert taken(source, subset, workers=2) == expected


def test_a_run_goes_on_from_its_step(tmp_path: Path) -> None:
    source, subset = image_folder(tmp_path / "a", 20), np.arange(20)
    assert taken(source, subset, first=4, num=2) == taken(source, subset)[4:]


def test_the_ranks_share_a_step(tmp_path: Path) -> None:
    source, subset = image_folder(tmp_path / "a", 20), np.arange(20)
    parts = [taken(source, subset, rank=rank, world=3) for rank in range(3)]
    for step, whole in enumerate(taken(source, subset)):
        assert [parts[i % 3][step][i // 3] for i in range(8)] == whole
    assert taken(source, subset, rank=9, world=10, num=1) == [[]]


def test_reading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "a", 8)
    before = torch.get_rng_state()
    assert len(taken(source, np.arange(8))) == 6
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_examples_are_skipped_counted_and_listed(tmp_path: Path, workers: int) -> None:
    source, broken = image_folder(tmp_path / "a", 12, broken=(3, 8, 9, 10, 11)), Broken()
    how = {"seed": 0, "batch_size": 4, "first_step": 0, "num_workers": workers, "broken": broken}
    steps = [[named(item) for item in step] for step in training_batches(source, np.arange(12), num_steps=6, **how)]  # type: ignore[arg-type]
    chosen = [step_indices(np.arange(12), seed=0, step=step, batch_size=4) for step in range(6)]
    assert steps == [[f"picture {i}" for i in step if i not in (3, 8, 9, 10, 11)] for step in chosen]
    assert (broken.num_read, broken.num_broken) == (24, 10)
    met = [i for i in np.concatenate(chosen[:3]) if i in (3, 8, 9, 10, 11)]
    assert broken.texts == [f"{tmp_path / 'a' / f'{i}.png'}: PIL does not know the format of its 24 bytes" for i in met]
    broken.write(tmp_path / "broken.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"broken": text, "times": 2} for text in broken.texts]


def test_a_step_without_a_good_example_is_empty(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "a", 8, broken=range(8))
    assert taken(source, np.arange(8), num=2) == [[], []]


def test_broken_are_counted_when_their_step_is_yielded(tmp_path: Path) -> None:
    source, broken = image_folder(tmp_path / "a", 8), Broken()
    steps = training_batches(
        source, np.arange(8), seed=0, batch_size=2, first_step=0, num_steps=4, num_workers=1, broken=broken
    )
    next(steps)
    assert broken.num_read == 2
    steps.close()  # type: ignore[attr-defined]


def test_more_than_one_percent_broken_is_refused(refusal: Refusal) -> None:
    broken = Broken()
    broken.add(99, [f"{i}.png: bad" for i in range(5)])
    broken.check()
    broken.add(1, [])
    assert refusal(broken.check) == (
        "ConfigError: --data: 5 of 100 examples read are broken, 5.0% where 1% is allowed; repair or remove "
        "them: 0.png: bad; 1.png: bad; 2.png: bad"
    )


def test_one_percent_broken_is_allowed_and_the_end_looks_at_any_number() -> None:
    broken = Broken()
    broken.check(final=True)
    broken.add(199, ["a: bad"])
    broken.check(final=True)
    broken.add(1, ["a: bad"])
    broken.check()
    broken.add(0, ["b: bad"])
    with pytest.raises(ConfigError, match="3 of 200"):
        broken.check()
    few = Broken()
    few.add(3, ["a: bad"])
    few.check()
    with pytest.raises(ConfigError, match=r"1 of 3 .* 33.3%"):
        few.check(final=True)

"""The feature cache: bounded in bytes, the least recently used out first, no batch kept alive by one image."""

import pytest
import torch

from dpbench.backbones.base import Features
from dpbench.engine.feature_cache import EncodedImage, FeatureCache, compact, features_bytes


def features(num: int, batch: torch.Tensor | None = None) -> Features:
    rows = torch.zeros(num, 4) if batch is None else batch[0]
    index = torch.arange(num)
    return Features(
        embeds_ND=rows, hidden_NC=rows, view_N=index, row_N=index, col_N=index, read_N=index >= 0, slot_N=index,
        cls_attention={22: torch.zeros(2, num)},
    )  # fmt: skip


def seen(num: int) -> EncodedImage:
    return EncodedImage(features(num), num, ())


def key(name: str) -> tuple[str, None]:
    return name, None


def test_bytes_are_those_of_every_tensor() -> None:
    assert features_bytes(features(10)) == 2 * 10 * 4 * 4 + 4 * 10 * 8 + 10 + 2 * 10 * 4


def test_it_never_holds_more_than_its_capacity_and_drops_what_was_not_used_for_longest() -> None:
    size = features_bytes(features(10))
    cache = FeatureCache(3 * size)
    for name in "abc":
        cache.put(key(name), seen(10))
    assert cache.get(key("a")) is not None
    cache.put(key("d"), seen(10))
    assert [cache.get(key(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.num_bytes == 3 * size
    cache.put(key("e"), seen(25))
    assert cache.num_bytes <= 3 * size
    assert cache.get(key("e")) is not None
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


@pytest.mark.parametrize("capacity", [0, 100])
def test_what_is_larger_than_the_cache_is_not_kept(capacity: int) -> None:
    cache = FeatureCache(capacity)
    cache.put(key("a"), seen(10))
    assert len(cache) == 0


def test_putting_an_image_again_counts_it_once() -> None:
    cache = FeatureCache(1 << 20)
    cache.put(key("a"), seen(10))
    cache.put(key("a"), seen(20))
    assert cache.num_bytes == features_bytes(features(20))


def test_one_image_keeps_no_batch_in_memory() -> None:
    batch = torch.randn(8, 10, 4)
    copied = compact(features(10, batch))
    assert copied.embeds_ND.untyped_storage().nbytes() == copied.embeds_ND.nbytes
    assert torch.equal(copied.embeds_ND, batch[0])

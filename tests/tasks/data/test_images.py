"""Images are decoded whole or not at all, in any number of threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from PIL import ImageFile

from dpbench.tasks.data.images import refuse_truncated_images


def test_half_an_image_stays_refused_until_the_last_thread_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    both_in, one_out = Barrier(2), Barrier(2)

    def decode(leaves_first: bool) -> bool:
        with refuse_truncated_images():
            both_in.wait(5)
            if not leaves_first:
                one_out.wait(5)
            strict = not ImageFile.LOAD_TRUNCATED_IMAGES
        if leaves_first:
            one_out.wait(5)
        return strict

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(decode, (True, False)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES

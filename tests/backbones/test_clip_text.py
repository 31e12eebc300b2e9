"""CLIP's text tower: how a question is cut into what it reads. Loading is tested with the method that needs it."""

import torch

from dpbench.backbones import clip_text, miniatures


def test_pieces_are_filled_up_with_zeros() -> None:
    ids, real = clip_text.split_into_pieces(torch.arange(1, 12)[None], 5)
    assert ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 0, 0, 0, 0]]
    assert real.tolist() == [[1] * 5, [1] * 5, [1, 0, 0, 0, 0]]
    assert clip_text.split_into_pieces(torch.ones(1, 5, dtype=torch.int64), 5)[0].shape == (1, 5)


def test_fresh_towers_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    model = miniatures.backbone("llava")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = clip_text.build_untrained(model), clip_text.build_untrained(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.text("Why ?"), two.text("Why ?"))
    assert one.text("Why ? " * 60).shape == (2, 64)
    assert not any(each.requires_grad for each in one.text_tower.parameters())

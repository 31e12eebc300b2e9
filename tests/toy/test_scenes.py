"""Scenes: deterministic, held-out ones apart, pictures where the truth says."""

import numpy as np

from dpbench.toy import scenes
from dpbench.toy.scenes import Scene, SceneObject


def test_training_and_benchmark_scenes_never_meet() -> None:
    rng = np.random.default_rng(0)
    drawn = [scenes.random_scene(rng) for _ in range(2000)]
    share = np.mean([scenes.is_held_out(scene) for scene in drawn])
    assert 0.09 < share < 0.16
    assert not any(scenes.is_held_out(scenes.training_scene(rng)) for _ in range(300))


def test_the_split_does_not_depend_on_the_order_of_objects() -> None:
    scene: Scene = (SceneObject("top", "red", "circle", "large", "3"), SceneObject("left", "blue", "cross", "small"))
    assert scenes.is_held_out(scene) == scenes.is_held_out(scene[::-1])


def test_a_scene_has_one_to_four_objects_in_places_of_their_own() -> None:
    rng = np.random.default_rng(1)
    for scene in (scenes.random_scene(rng) for _ in range(300)):
        assert 1 <= len(scene) <= 4
        assert len({item.place for item in scene}) == len(scene)
        assert all(item.size == "large" for item in scene if item.glyph)


def test_objects_are_painted_in_their_colour_in_their_cell() -> None:
    item = SceneObject("bottom right", "yellow", "square", "large")
    image = scenes.draw([(item,)], np.random.default_rng(0))[0].astype(int)
    near = np.abs(image - np.array(scenes.COLOURS["yellow"])).max(-1) <= 6
    assert near[64:, 64:].sum() == 30 * 30
    assert not near[:64].any()


def test_drawing_is_seeded_and_textures_differ() -> None:
    scene = scenes.training_scene(np.random.default_rng(0))
    first, again, other = (scenes.draw([scene], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_glyphs_are_distinct_bitmaps() -> None:
    bitmaps = scenes.glyph_bitmaps()
    assert tuple(bitmaps) == scenes.GLYPHS
    assert {bitmap.shape for bitmap in bitmaps.values()} == {(14, 10)}
    packed = {bitmap.tobytes() for bitmap in bitmaps.values()}
    assert len(packed) == len(scenes.GLYPHS)

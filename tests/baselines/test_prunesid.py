"""PruneSID against vectors from the official functions, and its pure functions against plain loops.

The vectors' keys are documented beside them. They are checked at four levels: official loadings, official sketch,
official seed (these three by the exact rows in the exact order), and full SVD where the seed does not matter.
"""

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from dpbench_baselines import prunesid
from dpbench_baselines.prunesid import PruneSID, Views
from dpbench_baselines.tile_canvas import canvas_order
from golden_vectors import find_vectors
from torch import Tensor

from dpbench.errors import ConfigError, UnsupportedError
from dpbench.method import VisualTokens

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = find_vectors("prunesid")
CLS = frozenset({"cls_attention", "cls_hidden_VC", "keys_Nd"})


class Golden:
    """One vector: what goes in, and what the official functions gave."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.cls = str(self.arrays["variant"]) == "llava"
        self.hidden = self["hidden"] if self.cls else self["hidden"][None]  # (V, [1 +] N, C)
        self.tokens = self.hidden[:, 1:] if self.cls else self.hidden
        self.num_views, self.num = self.tokens.shape[:2]
        self.keep = int(self.arrays["need_token_num" if self.cls else "need_effective"])

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def of_views(self, name: str) -> Tensor:
        """Return an array with its axis of views, which the vectors without CLS lack."""
        return self[name] if self.cls else self[name][None]

    def visual(self) -> VisualTokens:
        index = torch.arange(self.num_views * self.num)
        side = int(self.num**0.5)
        row, col, tile = index % self.num // side, index % self.num % side, index // self.num - 1
        slots = index
        if self.num_views > 1:
            width = int(self["grid_wh"][0])
            canvas = ((tile // width * side + row) * width + tile % width) * side + col
            slots = torch.where(tile < 0, index, self.num + canvas)
        flat = self.tokens.flatten(0, 1)
        return VisualTokens(
            embeds_ND=torch.zeros(len(flat), 4) if self.cls else flat,
            hidden_NC=flat if self.cls else torch.zeros(len(flat), 4),
            view_N=tile + 1,
            row_N=row,
            col_N=col,
            read_N=torch.ones_like(index, dtype=torch.bool),
            slot_N=slots,
            cls_hidden_VC=self.hidden[:, 0] if self.cls else None,
            cls_attention={22: self["cls_attn"].transpose(0, 1).flatten(1)} if self.cls else {},
            generator=torch.Generator().manual_seed(int(self.arrays["seed"])),
        )

    def views(self) -> Views:
        return Views(self.tokens, torch.ones(self.tokens.shape[:2], dtype=torch.bool), has_cls=self.cls)

    def scores(self) -> Tensor:
        return self["cls_attn"].sum(1) if self.cls else self.of_views("V_abs").amax(-1)

    def ids(self) -> Tensor:
        """Return the tokens of each view in the official order, (V, K)."""
        return self["kept_patch_idx"] if self.cls else self["kept_ids"][None]

    def rows(self) -> list[tuple[int, int]]:
        """Return (view, token) of each row the LLM reads, token -1 for CLS, in the official order."""
        first = [(0, -1)] * self.cls + [(0, token) for token in self.ids()[0].tolist()]
        if self.num_views == 1:
            return first
        crops, tokens = self["next_order_crop"].tolist(), self["next_order_id"].tolist()
        return first + [(crop + 1, token - 1) for crop, token in zip(crops, tokens, strict=True)]

    def check(self, method: PruneSID) -> None:
        """Compare what `reduce` returns with the official rows, bit by bit."""
        reduction = method.reduce(self.visual(), self.keep * self.num_views)
        wanted = [-1 if token < 0 else view * self.num + token for view, token in self.rows()]
        assert reduction.indices_K.tolist() == wanted
        if self.cls:
            assert reduction.hidden_KC is not None
            official = torch.stack([self.hidden[view, token + 1] for view, token in self.rows()])
            assert torch.equal(reduction.hidden_KC, official)


golden = pytest.mark.parametrize("vector", [Golden(path) for path in GOLDENS], ids=[path.stem for path in GOLDENS])


def with_loadings(loadings: Tensor) -> PruneSID:
    class Given(PruneSID):
        def loadings(self, views: Views, keep: int, generator: torch.Generator) -> Tensor:
            return loadings

    return Given(parity=True)


def test_all_vectors_are_there() -> None:
    assert len(GOLDENS) == 10


@golden
def test_official_loadings_give_the_official_groups_thresholds_counts_and_budgets(vector: Golden) -> None:
    views, loadings, keep = vector.views(), vector.of_views("V_abs"), vector.keep
    group = prunesid.semantic_groups(loadings, views.real_VN)
    assert torch.equal(group, vector.of_views("group"))
    order = prunesid.group_order(group, vector.scores())
    group = group.gather(1, order)
    units = prunesid.unit_rows(views, order)
    mean = prunesid.mean_similarity(units, torch.tensor(vector.num), halved=not vector.cls)
    official_mean = vector.of_views("sim_mean")
    torch.testing.assert_close(mean, official_mean, rtol=2e-6, atol=0)
    threshold = mean * (keep / 32 if vector.cls else max(18 * keep / vector.num, 1))
    torch.testing.assert_close(threshold, vector.of_views("threshold"), rtol=2e-6, atol=0)
    kept = prunesid.suppress_similar(prunesid.similar_pairs(units, group, threshold))
    num_groups = int(vector.arrays["n_groups"])
    sizes = prunesid.count(torch.ones_like(kept), group, num_groups)
    counts = prunesid.count(kept, group, num_groups)
    assert torch.equal(sizes, vector.of_views("group_count"))
    assert torch.equal(counts, vector.of_views("nms_count"))
    slots = keep - vector.cls
    budgets = prunesid.group_budgets(sizes, counts, target=keep, slots=slots, floor=1, cap=5 * ceil(keep / 64))
    assert torch.equal(budgets, vector.of_views("budget"))
    ids = order.gather(1, prunesid.fill_budgets(group, kept, budgets, slots))
    assert torch.equal(ids if keep <= 150 or vector.cls else ids.sort().values, vector.ids())


@golden
def test_official_loadings_give_the_official_rows(vector: Golden) -> None:
    vector.check(with_loadings(vector.of_views("V_abs")))


@golden
def test_the_official_sketch_gives_the_official_loadings_and_rows(vector: Golden) -> None:
    loadings = prunesid.sketched_loadings(prunesid.centre(vector.views()), vector["omega"], 2)
    torch.testing.assert_close(loadings, vector.of_views("V_abs"), rtol=0, atol=1e-4)
    vector.check(with_loadings(loadings))


@golden
def test_the_official_seed_gives_the_official_sketch_and_rows(vector: Golden) -> None:
    sketch = torch.randn(vector["omega"].shape, generator=vector.visual().generator)
    torch.testing.assert_close(sketch, vector["omega"])
    vector.check(PruneSID(parity=True))


@golden
def test_a_full_svd_gives_the_official_rows_where_the_seed_does_not_matter(vector: Golden) -> None:
    if vector.arrays["seed_robust"]:
        vector.check(PruneSID(exact=True, parity=True))
        vector.check(replace(PruneSID(parity=True), num_iterations=4))


@pytest.mark.gpu
@golden
def test_a_gpu_gives_the_official_rows_where_the_seed_does_not_matter(vector: Golden) -> None:
    if not vector.arrays["seed_robust"]:
        return
    visual = vector.visual()
    names = ("embeds_ND", "hidden_NC", "view_N", "row_N", "col_N", "read_N", "cls_hidden_VC")
    moved = {name: getattr(visual, name).cuda() for name in names}
    attention = {layer: rows.cuda() for layer, rows in visual.cls_attention.items()}
    reduction = PruneSID(parity=True).reduce(replace(visual, **moved, cls_attention=attention), vector.keep)
    assert reduction.indices_K.tolist() == [token for _, token in vector.rows()]


def made_up(
    num: int, *, views: int = 1, width: int = 24, cls: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32
) -> VisualTokens:
    """Clustered tokens, `num` of them in each view."""
    make = torch.Generator().manual_seed(1000 + seed)
    centres = torch.randn(6, width, generator=make)
    tokens = centres[torch.randint(6, (views * num,), generator=make)]
    tokens = (tokens + 0.6 * torch.randn(views * num, width, generator=make)).to(dtype)
    index = torch.arange(views * num)
    return VisualTokens(
        embeds_ND=tokens,
        hidden_NC=tokens,
        view_N=index // num,
        row_N=index % num // 12,
        col_N=index % num % 12,
        read_N=torch.ones_like(index, dtype=torch.bool),
        slot_N=index,
        cls_hidden_VC=torch.randn(views, width, generator=make).to(dtype) if cls else None,
        cls_attention={3: torch.rand(4, views * num, generator=make)} if cls else {},
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("width", [5, 24, 64])
@pytest.mark.parametrize("num", [1, 2, 3, 5, 30])
def test_every_budget_is_met_exactly_and_without_repetition(num: int, width: int, cls: bool) -> None:
    for keep in range(1, num + 1):
        reduction = PruneSID().reduce(made_up(num, width=width, cls=cls), keep)
        indices = reduction.indices_K.tolist()
        assert len(indices) == keep == len(set(indices))
        assert indices.count(-1) == cls
        assert set(indices) <= set(range(-1, num))


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("keep", [16, 32, 48, 100, 143, 144])
def test_the_toy_size_works_at_every_toy_budget(keep: int, cls: bool) -> None:
    indices = PruneSID().reduce(made_up(144, width=128, cls=cls), keep).indices_K
    assert len(indices.unique()) == keep


def test_rows_are_the_cls_row_and_the_chosen_hidden_states_in_their_own_type() -> None:
    visual = made_up(50, dtype=torch.float16)
    reduction = PruneSID().reduce(visual, 20)
    assert reduction.hidden_KC is not None
    assert visual.cls_hidden_VC is not None
    assert reduction.hidden_KC.dtype == torch.float16
    assert torch.equal(reduction.hidden_KC[:1], visual.cls_hidden_VC)
    assert torch.equal(reduction.hidden_KC[1:], visual.hidden_NC[reduction.indices_K[1:]])


def test_without_cls_rows_are_plain_tokens_ranked_by_their_loading() -> None:
    visual = made_up(50, cls=False)
    reduction = PruneSID().reduce(visual, 20)
    assert reduction.hidden_KC is None
    assert reduction.embeds_KD is None
    views = Views(visual.embeds_ND[None], visual.read_N[None], has_cls=False)
    sketch = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        reduction.scores_N, prunesid.sketched_loadings(prunesid.centre(views), sketch, 2).amax(-1)[0]
    )


def test_more_than_150_rows_without_cls_are_in_raster_order() -> None:
    for keep, cls, ordered in [(150, False, False), (151, False, True), (151, True, False)]:
        indices = PruneSID().reduce(made_up(200, cls=cls), keep).indices_K
        assert bool((indices.diff() > 0).all()) == ordered


def test_raster_order_changes_the_order_only() -> None:
    for cls in (True, False):
        group = PruneSID().reduce(made_up(144, cls=cls), 48).indices_K
        raster = PruneSID(order="raster").reduce(made_up(144, cls=cls), 48).indices_K
        assert not torch.equal(group, raster)
        assert torch.equal(group.sort().values, raster)


def test_the_sketch_follows_the_generator_and_nothing_else() -> None:
    visual = made_up(144, width=128)
    first, second, other = (
        PruneSID().reduce(replace(visual, generator=torch.Generator().manual_seed(seed)), 32).indices_K
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    exact = [PruneSID(exact=True).reduce(visual, 32).indices_K for _ in range(2)]
    assert torch.equal(*exact)


def test_the_inputs_are_left_as_they_were() -> None:
    for cls in (True, False):
        visual, before = made_up(60, cls=cls), made_up(60, cls=cls)
        PruneSID().reduce(visual, 20)
        assert torch.equal(visual.hidden_NC, before.hidden_NC)
        assert torch.equal(visual.embeds_ND, before.embeds_ND)


def test_views_are_pruned_independently_with_one_sketch() -> None:
    visual = made_up(60, views=3)
    together = PruneSID().reduce(visual, 3 * 16 + 2).indices_K  # the remainder of 2 is not used
    assert len(together) == 48
    assert together[0] == -1
    assert together[-2:].tolist() == [-1, -1]
    for view in range(3):
        part = slice(60 * view, 60 * (view + 1))
        assert visual.cls_hidden_VC is not None
        alone = replace(
            visual,
            **{name: getattr(visual, name)[part] for name in ("embeds_ND", "hidden_NC", "read_N", "slot_N")},
            cls_hidden_VC=visual.cls_hidden_VC[view : view + 1],
            cls_attention={3: visual.cls_attention[3][:, part]},
            generator=torch.Generator().manual_seed(0),
        )
        chosen = together[(together >= 60 * view) & (together < 60 * (view + 1))] - 60 * view
        assert torch.equal(chosen.sort().values, PruneSID().reduce(alone, 16).indices_K[1:].sort().values)


@pytest.mark.parametrize(("keep", "wanted"), [(2, 2), (3, 3), (5, 3), (6, 6)])
def test_fewer_rows_than_views_are_the_first_views_cls_rows(keep: int, wanted: int) -> None:
    visual = made_up(20, views=3)
    reduction = PruneSID().reduce(visual, keep)
    assert len(reduction.indices_K) == wanted
    assert reduction.hidden_KC is not None
    assert visual.cls_hidden_VC is not None
    cls_rows = reduction.hidden_KC[reduction.indices_K < 0]
    assert torch.equal(cls_rows, visual.cls_hidden_VC[: min(keep, 3)])


def test_views_of_unequal_size_are_refused() -> None:
    visual = made_up(20, views=3)
    short = replace(visual, **{name: getattr(visual, name)[:-1] for name in ("embeds_ND", "hidden_NC", "read_N")})
    with pytest.raises(ValueError, match="59 visual tokens"):
        PruneSID().reduce(short, 9)


def test_tiles_are_read_along_the_canvas_each_token_in_its_own_place() -> None:
    # two tiles of two by two patches side by side, behind a base view: the canvas has rows 0 1 4 5 and 2 3 6 7
    slots = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11])
    ids = torch.tensor([[7, 4, 5], [8, 11, 10]])
    assert canvas_order(ids, slots, misplace=False).tolist() == [4, 5, 8, 7, 10, 11]
    # the first tile's places are those of 4, 5 and 7, and its tokens take them in group order
    assert canvas_order(ids, slots, misplace=True).tolist() == [7, 4, 8, 5, 11, 10]
    assert canvas_order(ids[:0], slots, misplace=False).tolist() == []


def test_default_and_parity_read_the_same_rows_of_next_in_another_order() -> None:
    vector = next(v for v in map(Golden, GOLDENS) if v.num_views == 5)
    usual, parity = (PruneSID(parity=p).reduce(vector.visual(), 5 * vector.keep).indices_K for p in (False, True))
    tiles = slice(vector.keep, -4)
    assert torch.equal(usual[: vector.keep], parity[: vector.keep])
    assert torch.equal(usual[tiles].sort().values, parity[tiles].sort().values)
    assert (usual[tiles] != parity[tiles]).float().mean() > 0.9
    view, place = (usual[tiles] // 576 - 1), usual[tiles] % 576
    row, col = 24 * (view // 2) + place // 24, 24 * (view % 2) + place % 24
    assert bool(((48 * row + col).diff() > 0).all())


@pytest.mark.parametrize("keep", [6, 33, 40, 60])
def test_what_unpadding_drops_is_chosen_last_unless_parity(keep: int) -> None:
    visual = made_up(60)
    padded = replace(visual, read_N=visual.row_N > 1)  # 36 of 60 left
    chosen = PruneSID().reduce(padded, keep).indices_K[1:]
    assert len(chosen) == keep - 1
    assert visual.row_N[chosen[:36]].min() > 1
    with_padding = PruneSID(parity=True).reduce(replace(padded, generator=torch.Generator().manual_seed(0)), keep)
    wanted = PruneSID().reduce(made_up(60), keep)
    is_padding = (wanted.indices_K >= 0) & ~padded.read_N[wanted.indices_K]
    assert torch.equal(with_padding.indices_K, wanted.indices_K.masked_fill(is_padding, -1))
    assert with_padding.hidden_KC is not None
    assert wanted.hidden_KC is not None
    assert torch.equal(with_padding.hidden_KC, wanted.hidden_KC)


def test_padding_counts_nowhere() -> None:
    visual = made_up(60)
    read = visual.row_N > 1
    padded = replace(visual, read_N=read, hidden_NC=torch.where(read[:, None], visual.hidden_NC, 50.0))
    names = ("embeds_ND", "hidden_NC", "view_N", "row_N", "col_N", "read_N", "slot_N")
    cropped = replace(
        visual,
        **{name: getattr(visual, name)[read] for name in names},
        cls_attention={3: visual.cls_attention[3][:, read]},
        generator=torch.Generator().manual_seed(0),
    )
    wanted = PruneSID().reduce(cropped, 24).indices_K[1:] + 24
    assert torch.equal(PruneSID().reduce(padded, 24).indices_K[1:], wanted)


def test_a_view_of_padding_alone_still_gives_its_rows() -> None:
    visual = made_up(60)
    indices = PruneSID().reduce(replace(visual, read_N=torch.zeros_like(visual.read_N)), 24).indices_K
    assert len(indices.unique()) == 24
    nothing = torch.zeros(1, 3, dtype=torch.int64)
    assert prunesid.group_budgets(nothing, nothing, target=5, slots=4, floor=1, cap=5).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("num", "width", "keep", "cls", "num_groups"),
    [(60, 24, 16, True, 4), (60, 24, 15, True, 3), (60, 24, 3, True, 1), (60, 24, 8, False, 4), (60, 24, 22, False, 5),
     (60, 24, 12, True, 3), (60, 5, 40, True, 5), (60, 5, 40, False, 5), (3, 24, 2, False, 3)],
)  # fmt: skip
@pytest.mark.parametrize("exact", [True, False])
def test_there_is_a_group_for_every_four_rows(
    num: int, width: int, keep: int, cls: bool, num_groups: int, exact: bool
) -> None:
    visual = made_up(num, width=width)
    views = Views(visual.hidden_NC[None], visual.read_N[None], has_cls=cls)
    assert PruneSID(exact=exact).loadings(views, keep, visual.generator).shape == (1, num, num_groups)


def test_without_cls_the_threshold_is_at_least_the_mean_similarity() -> None:
    # the factor falls with the threshold's divisor, 576 * 8 / (divisor * 200), and stops at 1
    usual, higher, floor = (
        PruneSID(threshold_tokens=divisor).reduce(made_up(200, cls=False), 8).indices_K for divisor in (32, 23.04, 4)
    )
    assert torch.equal(usual, higher)
    assert not torch.equal(usual, floor)


def test_needs_follow_the_tower() -> None:
    assert PruneSID().needs(CLS) == {"cls_attention", "cls_hidden_VC"}
    assert PruneSID().needs(frozenset({"received_attention_N"})) == frozenset()
    assert PruneSID(positions="original").needs(frozenset()) == frozenset()
    with pytest.raises(UnsupportedError, match="CLS token"):
        PruneSID().needs(frozenset({"cls_attention"}))
    with pytest.raises(UnsupportedError, match="positions=compact"):
        PruneSID(positions="original").needs(CLS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tokens_per_group": 0}, "tokens_per_group >= 1"),
        ({"cap": 0}, "cap >= 1"),
        ({"threshold_tokens": 0.0}, "threshold_tokens > 0"),
        ({"order": "column"}, "order=raster"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneSID(**params)  # type: ignore[arg-type]


@pytest.mark.parametrize(("num", "width"), [(40, 64), (64, 40), (30, 30)])
def test_the_sketch_finds_the_components_of_a_low_rank_image(num: int, width: int) -> None:
    make = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(2, num, 5, generator=make)).Q
    right = torch.linalg.qr(torch.randn(2, width, 5, generator=make)).Q
    centred = left * torch.tensor([16.0, 8, 4, 2, 1]) @ right.mT
    sketch = torch.randn(min(num, width), 5, generator=make)
    torch.testing.assert_close(prunesid.sketched_loadings(centred, sketch, 2), left.abs(), rtol=0, atol=1e-5)
    torch.testing.assert_close(prunesid.exact_loadings(centred, 5), left.abs(), rtol=0, atol=1e-5)


def test_groups_go_to_the_largest_loading_and_ties_to_the_first() -> None:
    loadings = torch.tensor([[[0.1, 0.5, 0.5], [0.3, 0.3, 0.3], [0.0, 0.1, 0.2], [0.9, 0.0, 0.0]]])
    real = torch.tensor([[True, True, True, False]])
    assert prunesid.semantic_groups(loadings, real).tolist() == [[1, 0, 2, 3]]


def test_inside_a_group_equal_scores_are_in_token_order() -> None:
    group, scores = torch.tensor([[1, 0, 1, 0, 1, 0]]), torch.tensor([[2.0, 1.0, 2.0, 1.0, 3.0, 1.0]])
    assert prunesid.group_order(group, scores).tolist() == [[1, 3, 5, 4, 0, 2]]


@pytest.mark.parametrize("halved", [False, True])
def test_the_mean_similarity_is_that_of_the_pairs(halved: bool) -> None:
    views = Views(made_up(17, views=2).hidden_NC.unflatten(0, (2, 17)), torch.ones(2, 17, dtype=torch.bool), True)
    views.real_VN[1, 5:] = False
    order = torch.arange(17).expand(2, -1)
    mean = prunesid.mean_similarity(prunesid.unit_rows(views, order), views.real_VN.sum(-1), halved=halved)
    for view, num in enumerate((17, 5)):
        cosine = torch.cosine_similarity(
            views.tokens_VNC[view, :num, None].double(), views.tokens_VNC[view, None, :num].double(), dim=-1
        )
        wanted = cosine.triu().sum() / num**2 if halved else cosine.triu(1).sum() / (num * (num - 1) / 2)
        torch.testing.assert_close(mean[view].double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_mean_similarity_of_a_single_token_is_a_number() -> None:
    one, none = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    assert prunesid.mean_similarity(one, torch.tensor([1]), halved=False).tolist() == [0]
    assert prunesid.mean_similarity(one, torch.tensor([1]), halved=True).tolist() == [1]
    assert prunesid.mean_similarity(none, torch.tensor([0]), halved=False).tolist() == [0]
    assert prunesid.mean_similarity(none, torch.tensor([0]), halved=True).tolist() == [0]


@pytest.mark.parametrize("num", [1, 63, 64, 65, 200])
def test_panels_give_the_pairs_of_the_whole_matrix(num: int) -> None:
    make = torch.Generator().manual_seed(num)
    group = torch.randint(5, (2, num), generator=make).sort().values
    group[1] = group[1].clamp(max=1)  # one group that spans panels
    units = torch.nn.functional.normalize(torch.randn(2, num, 3, generator=make), dim=-1)
    threshold = torch.tensor([0.1, -0.2])
    similar = prunesid.similar_pairs(units, group, threshold)
    whole = (units @ units.mT > threshold[:, None, None]) & (group[:, :, None] == group[:, None])
    assert torch.equal(similar, whole.triu(1))


@pytest.mark.parametrize("density", [0.005, 0.05, 0.5, 1.0])
def test_suppression_is_greedy(density: float) -> None:
    similar = (torch.rand(3, 90, 90, generator=torch.Generator().manual_seed(0)) < density).triu(1)
    kept = prunesid.suppress_similar(similar)
    for view in range(3):
        greedy: list[int] = []
        for token in range(90):
            if not any(similar[view, before, token] for before in greedy):
                greedy.append(token)
        assert kept[view].nonzero()[:, 0].tolist() == greedy


def test_suppression_follows_a_chain_to_its_end() -> None:
    chain = torch.diag(torch.ones(199, dtype=torch.bool), 1)[None]
    assert prunesid.suppress_similar(chain)[0].tolist() == [True, False] * 100


def plain_budgets(sizes: list[int], kept: list[int], target: int, slots: int, cap: int) -> list[int]:
    """Allocate as the paper's code does, group by group; for more slots than groups."""
    low = [min(1, size) for size in sizes]
    high = [min(cap, size, k) for size, k in zip(sizes, kept, strict=True)]
    while sum(high) < target:
        high = [min(h + 1, size) for h, size in zip(high, sizes, strict=True)]
    rest = max(0, slots - sum(low))
    share = torch.tensor(kept) / sum(kept)
    ends = [0] + [round(float(share[: g + 1].cumsum(0)[-1] * rest)) for g in range(len(sizes))]
    budgets = [min(low[g] + ends[g + 1] - ends[g], high[g]) for g in range(len(sizes))]
    for g in sorted(range(len(sizes)), key=lambda g: -kept[g]):
        budgets[g] += min(high[g] - budgets[g], rest + sum(low) - sum(budgets))
    return budgets


@pytest.mark.parametrize("seed", range(20))
def test_budgets_equal_the_plain_allocation(seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    num_groups = int(torch.randint(2, 20, (), generator=make))
    sizes = torch.randint(12, (4, num_groups), generator=make)
    sizes[:, 0] += 8 * num_groups
    kept = torch.minimum((sizes * torch.rand(4, num_groups, generator=make)).ceil().long(), sizes)
    target, cap = 4 * num_groups, 1 + seed % 5
    for slots in (target, target - 1):
        budgets = prunesid.group_budgets(sizes, kept, target=target, slots=slots, floor=1, cap=cap)
        assert budgets.sum(-1).tolist() == [slots] * 4
        for view in range(4):
            plain = plain_budgets(sizes[view].tolist(), kept[view].tolist(), target, slots, cap)
            assert budgets[view].tolist() == plain


def test_equal_groups_round_halves_as_a_float32_sum_on_a_cpu_does() -> None:
    for num_groups in range(2, 49):
        for slots in range(num_groups, 5 * num_groups):
            sizes = torch.full((1, num_groups), 12)
            budgets = prunesid.group_budgets(sizes, sizes, target=slots + 1, slots=slots, floor=1, cap=12)
            ends = ((sizes / sizes.sum()).cumsum(-1) * (slots - num_groups)).round()
            assert budgets.cumsum(-1).tolist() == (ends + torch.arange(1, num_groups + 1)).long().tolist()


def test_missing_tokens_go_to_the_groups_that_kept_most_then_to_the_first() -> None:
    room, kept = torch.tensor([[1, 2, 2, 9]]), torch.tensor([[3, 5, 5, 4]])
    given = [prunesid.share_missing(torch.tensor([[missing]]), room, kept)[0].tolist() for missing in (0, 1, 3, 6, 99)]
    assert given == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 1, 0], [0, 2, 2, 2], [1, 2, 2, 9]]


def test_a_group_gives_what_suppression_kept_before_what_it_suppressed() -> None:
    group = torch.tensor([[0, 0, 0, 2, 2, 3]])  # group 1 is empty, the last token takes no part
    kept = torch.tensor([[True, False, True, False, True, True]])
    budgets = torch.tensor([[2, 0, 1]])
    assert prunesid.fill_budgets(group, kept, budgets, 3).tolist() == [[0, 2, 4]]
    assert prunesid.fill_budgets(group, kept, budgets + 1, 5).tolist() == [[0, 2, 1, 4, 3]]

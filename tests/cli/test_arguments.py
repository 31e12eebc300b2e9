"""From flags to a manifest: sizes, lists, budgets, and a shipped manifest that runs on another backbone."""

from pathlib import Path

import pytest

from dpbench.cli.arguments import CellFlags, build_manifest, parse_bytes, split_numbers
from dpbench.cli.messages import format_overrides
from dpbench.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("500MB", 500_000_000), ("0", 0), ("1.5 KiB", 1536), ("12", 12)]
)
def test_sizes_are_parsed_with_their_units(text: str, size: int) -> None:
    assert parse_bytes("--feature-cache", text) == size


def test_a_wrong_size_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^--feature-cache: 'much' is not a size; give one as 4GiB, 500MB or 0$"):
        parse_bytes("--feature-cache", "much")


def test_numbers_keep_their_order() -> None:
    assert split_numbers("--keep", ["64, 128", "192"], int) == [64, 128, 192]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (CellFlags(keep=[0]), "--keep: must be at least 1, got 0"),
        (CellFlags(keep=[16, -1]), "--keep: must be at least 1, got -1"),
        (CellFlags(prune_rate=[1.0]), "--prune-rate: must be at least 0 and below 1, got 1.0"),
        (CellFlags(prune_rate=[0.5, -0.5]), "--prune-rate: must be at least 0 and below 1, got -0.5"),
        (CellFlags(prune_rate=[float("nan")]), "--prune-rate: must be at least 0 and below 1, got nan"),
        (CellFlags(keep=[16], prune_rate=[0.5]), "--keep and --prune-rate both set the budget; give one of them"),
    ],
)
def test_every_wrong_budget_is_one_sentence(flags: CellFlags, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flags.budgets()
    assert str(caught.value) == sentence


def test_a_manifest_runs_on_another_backbone_with_the_same_shares() -> None:
    path = Path("table1-llava-1.5")
    own, toy = (build_manifest(path, CellFlags(backbone=name)) for name in (None, "toy-llava"))
    assert (own.backbone.name, own.budgets and own.budgets.keep) == ("llava-1.5", [192, 128, 64])
    assert (toy.backbone.name, toy.budgets and toy.budgets.keep) == ("toy-llava", [48, 32, 16])
    assert [method.params for method in own.methods if method.name == "diffprune"] == [
        {"checkpoint": "scorers/{backbone}"}
    ]
    assert [method.params for method in toy.methods if method.name == "diffprune"] == [{}]
    assert build_manifest(path, CellFlags(backbone="llava-1.5")) == own


def test_a_method_that_the_other_backbone_cannot_serve_is_named_and_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = build_manifest(Path("table1-llava-1.5-full"), CellFlags(backbone="toy-llava"))
    names = [method.name for method in manifest.methods]
    assert "visionzip" in names
    assert "cdpruner" not in names
    assert "skipped: cdpruner" in capsys.readouterr().err


def test_flags_replace_the_grid_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\nbackbone: toy-llava\n"
        "methods: [none, {name: grid, params: {positions: original}, seeds: [3]}, pool]\n"
        "budgets: {keep: [48], kind: final}\ntasks: [gqa]\nprotocol: {limit: 9}\n"
    )
    flags = CellFlags(methods=["random", "grid"], keep=[8, 4], tasks=["pope"], protocol={"limit": 2})
    changed = build_manifest(path, flags)
    assert [(entry.name, entry.params, entry.seeds) for entry in changed.methods] == [
        ("grid", {"positions": "original"}, [3]),
        ("random", {}, None),
    ]
    assert changed.budgets is not None
    assert (changed.budgets.keep, changed.budgets.kind) == ([8, 4], "final")
    assert (changed.tasks, changed.protocol.limit) == (["pope"], 2)
    assert format_overrides(changed, flags) == "own with methods: grid, random; keep: 8, 4; tasks: pope; limit: 2"
    rates = build_manifest(path, CellFlags(prune_rate=[0.5], budget_kind="mean")).budgets
    assert rates is not None
    assert (rates.keep, rates.prune_rate, rates.kind) == (None, [0.5], "mean")
    assert format_overrides(build_manifest(path, CellFlags()), CellFlags()) == ""


def test_counts_given_as_flags_are_not_scaled_to_another_backbone() -> None:
    manifest = build_manifest(Path("table1-llava-1.5"), CellFlags(backbone="toy-llava", keep=[64]))
    assert manifest.budgets is not None
    assert manifest.budgets.keep == [64]


def test_several_methods_and_budgets_need_no_manifest() -> None:
    manifest = build_manifest(None, CellFlags(methods=["none", "grid"], backbone="toy-llava", keep=[8, 16]))
    assert manifest.name == "toy-llava-none-grid-8-16"
    assert [entry.name for entry in manifest.methods] == ["none", "grid"]
    with pytest.raises(ConfigError, match="--method grid needs a budget"):
        build_manifest(None, CellFlags(methods=["none", "grid"], backbone="toy-llava"))

"""Tables of the page: every row links to its own records."""

from dataclasses import replace
from pathlib import Path

from made_records import make_record

from dpbench.report import runs
from dpbench.report.html.data import flat_table
from dpbench.report.runs import Run
from dpbench.report.tables import scores


def test_scores_link_to_their_own_records_also_where_rows_overspend() -> None:
    """The overspender's row moves behind those of its budget."""
    over = replace(make_record("divprune", 16, "vqav2", 79.0), visual_tokens_per_layer=(17.0, 17.0))
    records = (make_record("none", None, "vqav2", 80.0), over, make_record("holov", 16, "vqav2", 50.0))
    (one,) = runs.comparisons([Run(Path("nowhere"), records, ())])
    table = flat_table(scores.section(one), one)
    at = table["columns"].index("VQAv2")
    assert [(row["cells"][0]["text"], row["cells"][at]["records"], row["budget"]) for row in table["rows"]] == [
        ("none", "none-None-vqav2", "Unpruned"),
        ("holov", "holov-16-vqav2", "Keep 16"),
        ("divprune", "divprune-16-vqav2", "Read more than their budget: Keep 16"),
    ]

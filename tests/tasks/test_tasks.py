"""The table of benchmarks: it agrees with the YAML files, and the list a person sees says what it must."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lmms_eval.utils import load_yaml_config
from places import TOY_DATA

from dpbench import tasks
from dpbench.cli import list_details, messages
from dpbench.errors import ConfigError
from dpbench.report.tables import published
from dpbench.tasks.data.root import data_files


@pytest.mark.parametrize("name", list(tasks.ALL))
def test_the_table_agrees_with_the_yaml(name: str) -> None:
    task, config = tasks.find(name), load_yaml_config(str(tasks.yaml_path(name)))
    assert config["task"] == f"dpb_{name}"
    assert config["dataset_path"] == f"{tasks.ORGANISATIONS[0]}/{task.repository}"
    assert config["test_split"] == task.split
    assert config.get("dataset_name", "data") == task.config
    assert (task.metric or "submission") in [each["metric"] for each in config["metric_list"]]
    assert "token" not in json.dumps(config.get("dataset_kwargs", {}))
    assert 1 <= config["generation_kwargs"]["max_new_tokens"] <= 32


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_the_mirror_has_the_columns_that_are_pinned(name: str) -> None:
    for path in data_files(name, TOY_DATA):
        assert set(tasks.find(name).columns) <= set(pq.read_schema(path).names)


def test_a_variant_reads_what_its_benchmark_reads() -> None:
    assert all(each.variant_of in tasks.TASKS for each in tasks.VARIANTS.values())
    names = [path.name for path in tasks.yaml_paths("vqav2_val_10k")]
    assert names == ["dpb_vqav2_val_10k.yaml", "dpb_vqav2.yaml"]
    assert all(path.is_file() for name in tasks.ALL for path in tasks.yaml_paths(name))


def test_a_misspelt_task_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no task 'vqav2_10k'; did you mean 'vqav2_val_10k'"):
        tasks.find("vqav2_10k")


def test_the_list_says_what_is_printed_and_what_is_there(tmp_path: Path) -> None:
    lines = {line.split()[0]: line for line in messages.format_task_table(TOY_DATA).splitlines() if line.strip()}
    assert set(tasks.ALL) <= set(lines)
    assert " yes " in lines["gqa"]
    assert " no " in lines["vqav2_testdev"]
    assert "14232" in lines["seedbench"]
    assert "0-2800" in lines["mme"]
    assert "sum" in lines["mme"]
    assert str(TOY_DATA) in lines["Data"]
    missing = messages.format_task_table(tmp_path)
    assert " yes " not in missing
    assert "dpbench data pull TASK" in missing


def test_every_benchmark_names_the_published_figure_that_it_may_be_compared_to() -> None:
    """LLaVA-1.5's, which is the unpruned row of the paper's Table 1."""
    for name, figure in published.load(1).unpruned.items():
        assert f"LLaVA-1.5's {figure:g}" in tasks.find(name).protocol, name
    assert "LLaVA-1.5's 66;" in tasks.find("seedbench").protocol
    assert "no published figure" in tasks.find("vqav2_val_10k").protocol


def test_the_aggregators_load_no_torch_and_no_lmms_eval() -> None:
    heavy = {"torch", "lmms_eval", "pandas", "datasets"}
    modules = "dpbench.tasks.aggregators, dpbench.evaluation.submission"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_list_fits_a_terminal_of_eighty_columns() -> None:
    assert max(map(len, messages.format_task_table(None).splitlines())) <= 80
    for name, task in tasks.ALL.items():
        lines = list_details.describe_task(name, None, 80).splitlines()
        assert max(map(len, lines)) <= 80
        assert task.protocol in " ".join(" ".join(lines).split())

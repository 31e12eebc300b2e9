"""Flags derived from models: types, choices, and the values a command receives."""

from __future__ import annotations

from typing import Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from dpbench.cli.flags import Given, flags_of, with_flags


class Settings(BaseModel):
    """Fields of every kind that flags support, and one without a description."""

    steps: int = Field(default=10, description="Number of steps.")
    rate: float | None = Field(default=None, description="Learning rate.")
    kind: Literal["mean", "final"] = Field(default="mean", description="What a budget counts.")
    size: Literal["auto"] | int = Field(default="auto", description="A number, or auto.")
    internal: int = 3


@pytest.fixture
def received() -> list[Given]:
    return []


@pytest.fixture
def app(received: list[Given]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_flags(settings=Settings)
    def command(*, settings: Given, out: str = "results") -> None:
        received.append({**settings, "out": out})

    return app


def test_a_described_field_is_a_flag_and_another_is_not() -> None:
    assert [flag.name for flag in flags_of(Settings)] == ["steps", "rate", "kind", "size"]
    assert [flag.name for flag in flags_of(Settings, only=("rate", "kind"))] == ["rate", "kind"]
    assert [flag.name for flag in flags_of(Settings, without=("rate",))] == ["steps", "kind", "size"]


def test_given_values_arrive_by_name_with_their_types_and_others_do_not(
    app: typer.Typer, received: list[Given]
) -> None:
    arguments = ["--steps", "7", "--rate", "0.5", "--kind", "final", "--size", "8"]
    for line in (arguments, [], ["--out", "elsewhere"]):
        assert CliRunner().invoke(app, line).exit_code == 0
    assert received == [
        {"steps": 7, "rate": 0.5, "kind": "final", "size": "8", "out": "results"},
        {"out": "results"},
        {"out": "elsewhere"},
    ]


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--rate", "x"], ["--kind", "median"], ["--internal", "3"]])
def test_a_value_of_the_wrong_type_or_an_unknown_flag_is_refused(
    app: typer.Typer, received: list[Given], arguments: list[str]
) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert received == []


def test_help_shows_descriptions_and_choices(app: typer.Typer) -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "Number of steps." in text
    assert "mean|final" in text

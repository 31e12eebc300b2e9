"""A mistake is answered before torch is imported, and a shell completes names without it."""

import json
import subprocess
import sys
from pathlib import Path

MISTAKES = [
    "check holow", "check holov --backbone toy-lava", "check holov --param layer",
    "run --method holow --backbone toy-llava --keep 16", "run --method holov --backbone toy-lava --keep 16",
    "run --method holov --backbone toy-llava --keep 16 --tasks pop", "run --method holov --backbone toy-llava --keep x",
    "run --method holov --backbone toy-llava --keep 500", "run quickstrt", "run quickstart --methods holow",
    "run quickstart --keeep 8", "plan quickstrt", "plan quickstart --tasks pop",
    "profile --method holow", "profile --backbone toy-lava --keep 3", "profile --keep 500", "profile --batch-size x",
    "profile --image-size x", "profile quickstrt", "profile --methods holov,grd --keep 16 --flops-only",
    "visualize a.png", "visualize a.png --method holow --keep 3", "visualize a.png --method holov",
    "visualize a.png --method holov --keep 3 --backbone toy-lava", "visualize a.png --manifest quickstrt",
    "train --backbone toy-lava", "train --backbone toy-llava --param stps=3", "train --backbone toy-llava --param lr=x",
    "list method", "list tasks pop", "list backbones x", "list methods holow", "list manifests x",
    "data pull pop", "data verify pop", "merge nowhere", "probe coherence --backbone toy-lava", "doctr",
    "doctor --data-root nowhere", "toy build --scale x", "--versio",
]  # fmt: skip
ANSWER = """
import json, sys
from dpbench.cli import commands
found = {}
for line in json.loads(sys.argv[1]):
    sys.argv = ["dpbench", *line.split()]
    try:
        commands.main()
    except SystemExit as stop:
        found[line] = stop.code, "torch" in sys.modules
print(json.dumps(found))
"""
COMPLETE = """
import json, sys
from dpbench.cli import completion
found = [
    completion.methods("none,hol"), completion.backbones("toy"), completion.tasks("gqa,po"),
    completion.manifests("quick"), completion.methods("x"),
]
print(json.dumps([found, "torch" in sys.modules]))
"""


def run(code: str, folder: Path, *arguments: str) -> object:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mistake_is_answered_without_torch(tmp_path: Path) -> None:
    assert run(ANSWER, tmp_path, json.dumps(MISTAKES)) == {line: [2, False] for line in MISTAKES}
    assert not list(tmp_path.iterdir())


def test_names_are_completed_without_torch(tmp_path: Path) -> None:
    names = [["none,holov"], ["toy-llava"], ["gqa,pope"], ["quickstart"], []]
    assert run(COMPLETE, tmp_path) == [names, False]

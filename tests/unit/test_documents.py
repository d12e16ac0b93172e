"""Documents do not lie: code blocks resolve, commands exist, links lead somewhere, the map lists every file."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vlm4vla"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:src|tests|docs|perf|\.ci)/[\w./-]*?)(?:::(\w+))?`")


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for language, text in BLOCK.findall(document.read_text(encoding="utf-8")):
            if language in languages:
                yield document.relative_to(ROOT).as_posix(), text


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every shell line of the documents that starts with this program, split into words."""
    lines = [
        (name, line.strip())
        for name, text in blocks("bash", "sh", "console")
        for line in re.sub(r"\\\n\s*", "", text).splitlines()
    ]
    words = [(name, shlex.split(line.removeprefix("$ "), comments=True)) for name, line in lines]
    return [(name, line) for name, line in words if line and Path(line[0]).name == program]


@pytest.mark.parametrize("name, text", [pytest.param(*block, id=block[0]) for block in blocks("python")])
def test_python_blocks_use_names_that_exist(name: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlm4vla"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for _, words in commands("make") for word in words[1:] if "=" not in word}
    assert {"quickstart", "test"} <= named <= targets


def test_vlm4vla_commands_parse() -> None:
    from vlm4vla.cli import build_parser

    lines = commands("vlm4vla")
    assert lines
    for name, words in lines:
        try:
            build_parser().parse_args(words[1:])
        except SystemExit as error:
            if error.code:
                pytest.fail(f"{name}: `{shlex.join(words)}` is no command of vlm4vla")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [
        target
        for target in LINK.findall(text)
        if "://" not in target
        and not target.startswith("#")
        and not (document.parent / target.split("#")[0]).exists()
    ]
    for path, name in PATH.findall(text):
        if not (ROOT / path).exists():
            missing.append(path)
        elif name and f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8"):
            missing.append(f"{path}::{name}")
    assert not missing


def test_the_map_lists_every_file_of_the_package() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Map of the code")[1].split("\n## ")[0]
    listed = re.findall(r"^([\w/]+\.py) +\S", section, re.MULTILINE)
    existing = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.read_text(encoding="utf-8").strip()
    ]
    assert sorted(listed) == sorted(existing)


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert [name[:4] for name in names] == [f"{number:04d}" for number in range(1, len(names) + 1)]


def test_the_module_runs_as_a_command() -> None:
    outcome = subprocess.run([sys.executable, "-m", "vlm4vla.cli", "--help"], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "quickstart" in outcome.stdout

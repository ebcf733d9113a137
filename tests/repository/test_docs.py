"""The documents' check sees what it is there to see."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def check_docs():
    spec = importlib.util.spec_from_file_location("check_docs", ROOT / "docs" / "check_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_flag_of_every_program_is_in_the_document(check_docs):
    text, faults = check_docs.commands_text()
    assert faults == []
    for module in check_docs.PROGRAMS.values():
        for parser, _ in check_docs.commands_of(check_docs.parser_of(module)):
            for action in check_docs.described_actions(parser):
                assert all(option in text for option in action.option_strings)


def test_a_changed_flag_makes_the_document_stale(check_docs, tmp_path, monkeypatch):
    stale = tmp_path / "commands.md"
    stale.write_text(check_docs.commands_text()[0].replace("--seed", "--sed"))
    monkeypatch.setattr(check_docs, "COMMANDS_FILE", stale)
    assert any("not current" in fault for fault in check_docs.check_commands())


def test_help_is_shown_with_its_default_and_requirement(check_docs):
    parser = argparse.ArgumentParser(prog="p")
    action = parser.add_argument(
        "--n", type=int, default=3, required=True, help="so many (%(default)s)"
    )
    assert check_docs.documented("p", action) == "- `--n N` (required): so many (3)"


def test_parser_is_given_back_unchanged(check_docs):
    original = argparse.ArgumentParser.parse_args
    assert check_docs.parser_of("tf_dpfl.cli.main").prog == "dpfl"
    assert argparse.ArgumentParser.parse_args is original


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see [a](b.md) and [c](d/e.md#f-g)", ["b.md", "d/e.md#f-g"]),
        ("`[a](b.md)`", []),
        ("```sh\n[a](b.md)\n```\n[x](y)", ["y"]),
    ],
)
def test_links_are_found_outside_of_code(check_docs, text, links):
    assert check_docs.links_of(text) == links


@pytest.mark.parametrize(
    ("link", "faults"),
    [("there.md", 0), ("gone.md", 1), ("there.md#a-heading", 0), ("there.md#nothing", 1),
     ("#own-heading", 0), ("#gone", 1), ("https://example.org/gone", 0)],
)  # fmt: skip
def test_dead_links_are_faults(check_docs, link, faults, tmp_path, monkeypatch):
    (tmp_path / "there.md").write_text("# A heading\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Own heading\n[x]({link})\n")
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    monkeypatch.setattr(check_docs, "project_files", lambda pattern: [page])
    assert len(check_docs.check_links()) == faults


@pytest.mark.parametrize(
    ("source", "faults"),
    [('"""Owns x."""\n', 0), ("x = 1\n", 1), ("", 1)],
)  # fmt: skip
def test_sources_must_say_what_they_own(check_docs, source, faults, tmp_path, monkeypatch):
    file = tmp_path / "source.py"
    file.write_text(source)
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    monkeypatch.setattr(check_docs, "project_files", lambda pattern: [file])
    assert len(check_docs.check_sources()) == faults


@pytest.mark.parametrize("name", ["source.py", "docs/page.md", "docs/CHANGELOG.md"])
def test_a_file_that_is_too_long_is_a_fault_and_named(check_docs, name, tmp_path, monkeypatch):
    file = planted(check_docs, monkeypatch, tmp_path, name)
    file.write_text("a line\n" * 400)
    assert check_docs.check_lengths() == []
    file.write_text("a line\n" * 401)
    assert check_docs.check_lengths() == [f"{name}: more than 400 lines; split it"]


def test_the_changelog_may_be_long(check_docs, tmp_path, monkeypatch):
    planted(check_docs, monkeypatch, tmp_path, "CHANGELOG.md").write_text("a line\n" * 401)
    assert check_docs.check_lengths() == []


def planted(check_docs, monkeypatch, root, name):
    """A file in a repository of its own, which the check looks at."""
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.setattr(check_docs, "ROOT", root)
    file = root / name
    file.parent.mkdir(exist_ok=True)
    return file

"""Checks that the documents and the sources say what is there; part of `./run check`.

Every command, argument and flag of the three programs is in `docs/commands.md`,
which `python docs/check_docs.py --write` makes from their parsers. Every
relative link resolves, every source file says in its first line what it owns,
and sources and documents, but for the changelog, end before 400 lines.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS_FILE = ROOT / "docs" / "commands.md"
MOST_LINES = 400
GROWS_WITH_EVERY_CHANGE = {"CHANGELOG.md"}  # as it is meant to

# Program: the module of its `main`.
PROGRAMS = {
    "dpfl": "tf_dpfl.cli.main",
    "dpfl-server": "server.cli",
    "dpfl-device": "mobile_client.cli",
}

PREAMBLE = """\
# Commands

Made from the programs' own parsers by `python docs/check_docs.py --write`;
`./run check` fails when the two differ. In a clone, put `./run` before each
command, as in `./run dpfl privacy examples/digits.toml`.

Every command ends with status 0 only when it did what it says. Bad input ends
with status 2 and one line on standard error for each fault; an interrupt
(Ctrl-C) with 130. With `--json` standard output holds JSON and nothing else; a
number that is infinite is `null`.
"""

Actions = list[argparse.Action]


class _ParserFound(Exception):
    """Carries the parser that a program was about to use."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that `module`'s `main` parses with, wherever it is built."""

    def stop(self: argparse.ArgumentParser, *_: object) -> None:
        raise _ParserFound(self)

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = stop  # type: ignore[assignment, method-assign]
    try:
        importlib.import_module(module).main([])
    except _ParserFound as found:
        parser: argparse.ArgumentParser = found.args[0]
        return parser
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    raise RuntimeError(f"{module}.main parses no arguments")


def commands_of(
    parser: argparse.ArgumentParser, about: str = ""
) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """`parser` and all the parsers below it, each with what it is about."""
    yield parser, " ".join((parser.description or about).split())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, below in action.choices.items():
                yield from commands_of(below, sentence(helps.get(name) or ""))


def sentence(text: str) -> str:
    """A short help text as a sentence."""
    return text[:1].upper() + text[1:] + "." if text else ""


def described_actions(parser: argparse.ArgumentParser) -> Actions:
    """A parser's own arguments and flags, without its help and its subcommands."""
    return [
        action
        for action in parser._actions
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    ]


def documented(name: str, action: argparse.Action) -> str:
    """One line of Markdown for an argument or a flag."""
    help_text = " ".join((action.help or "").split())
    if "%" in help_text:
        values = {**vars(action), "prog": name}
        help_text = help_text % values
    if not action.option_strings:
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest
        return f"- `{metavar}`: {help_text}"
    value = ""
    if action.nargs != 0:
        if action.metavar is not None:
            metavar = action.metavar
            value = " " + (metavar if isinstance(metavar, str) else " ".join(metavar))
        elif action.choices is not None:
            value = " " + "|".join(map(str, action.choices))
        else:
            value = " " + action.dest.upper()
    required = " (required)" if action.required else ""
    return f"- `{', '.join(action.option_strings)}{value}`{required}: {help_text}"


def commands_text() -> tuple[str, list[str]]:
    """The whole of `docs/commands.md`, and the faults of what it is made from."""
    lines, faults = [PREAMBLE], []
    for program, module in PROGRAMS.items():
        for parser, about in commands_of(parser_of(module)):
            name = " ".join(re.sub(r" [A-Z]\S*", "", parser.prog).split())
            if not about:
                faults.append(f"{name}: nothing says what the command does")
            lines += [f"{'##' if name == program else '###'} {name}", "", about, ""]
            for action in described_actions(parser):
                if not action.help:
                    faults.append(f"{name}: {action.option_strings or action.dest} has no help")
                lines.append(documented(name, action))
            if described_actions(parser):
                lines.append("")
            if parser.epilog and name == program:
                lines += [sentence(" ".join(parser.epilog.split())), ""]
    return "\n".join(lines).rstrip("\n") + "\n", faults


def check_commands() -> list[str]:
    """Faults of the commands' documentation."""
    text, faults = commands_text()
    written = COMMANDS_FILE.read_text() if COMMANDS_FILE.exists() else ""
    if text != written:
        faults.append("docs/commands.md is not current: run python docs/check_docs.py --write")
    return faults


def project_files(pattern: str) -> list[Path]:
    """The project's own files of that pattern, new ones too; nothing git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    files = (ROOT / name for name in sorted(set(listed.stdout.splitlines())))
    return [file for file in files if file.exists()]


def links_of(text: str) -> list[str]:
    """Targets of the Markdown links in `text`, code left out."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors_of(text: str) -> set[str]:
    """The anchors that Markdown headings get."""
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links() -> list[str]:
    """Relative links that lead nowhere."""
    faults = []
    for file in project_files("*.md"):
        for link in links_of(file.read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = file.parent / target if target else file
            known = path.suffix != ".md" or not anchor or not path.is_file()
            if not path.exists() or not (known or anchor in anchors_of(path.read_text())):
                faults.append(f"{file.relative_to(ROOT)}: the link {link} leads nowhere")
    return faults


def check_sources() -> list[str]:
    """Sources whose first line does not say what they own."""
    return [
        f"{file.relative_to(ROOT)}: its first line must say what the file owns"
        for file in project_files("*.py")
        if not ast.get_docstring(ast.parse(file.read_text()))
    ]


def check_lengths() -> list[str]:
    """Sources and documents longer than one file should be."""
    names = {
        str(file.relative_to(ROOT)): file
        for pattern in ("*.py", "*.md")
        for file in project_files(pattern)
    }
    return [
        f"{name}: more than {MOST_LINES} lines; split it"
        for name, file in names.items()
        if name not in GROWS_WITH_EVERY_CHANGE and file.read_text().count("\n") > MOST_LINES
    ]


def main() -> int:
    """Prints every fault; 0 when there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write docs/commands.md anew")
    if parser.parse_args().write:
        COMMANDS_FILE.write_text(commands_text()[0])
    faults = check_commands() + check_links() + check_sources() + check_lengths()
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"documents: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())

"""The commands that pages and programs show: found, and run as they stand in a folder that looks like a clone of this repository."""

import glob
import os
import re
import shlex

from conftest import ROOT, run_program

CODE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"`((?:python|\$RUN|accelerate launch|torchrun) [^`]*)`")
LINKED = ("configs", "scripts", "studies", "dp2osr", *(path.name for path in ROOT.glob("*.py")))


def shell_lines(code):
    """Bash code as whole commands: lines that end with a backslash or within quotes are joined, comments are gone."""
    whole = ""
    for line in code.replace("\\\n", " ").splitlines():
        whole = f"{whole} {line}".strip()
        try:
            words = shlex.split(whole, comments=True)
        except ValueError:  # a quote is open
            continue
        if words:
            yield whole
        whole = ""


def page_commands(text):
    """The commands of a page, in its order, each as its words: those of its bash code, and those that stand in cells of its tables.

    The page's own variables are replaced by what they are set to.
    """
    parts, at = [], 0
    for block in CODE.finditer(text):
        parts += [CELL.findall(line) for line in text[at : block.start()].splitlines() if line.startswith("|")]
        parts += [list(shell_lines(block[3]))] if block[2] == "bash" else []
        at = block.end()
    parts += [CELL.findall(line) for line in text[at:].splitlines() if line.startswith("|")]
    variables = {}

    def value(name):
        return variables.get(name[1], name[0])

    for line in (line for part in parts for line in part):
        variables |= {name: " ".join(words.split()) for name, words in re.findall(r'\b([A-Z][A-Z0-9]*)="([^"]*)"', line)}
        line = re.sub(r"\$([A-Z][A-Z0-9]*)\b", value, line)
        words = shlex.split(line, comments=True)
        if not all(re.match(r"[A-Z][A-Z0-9]*=|;$", word) for word in words):
            yield words


def docstring_commands(path):
    """The commands in a program's docstring, each as its words."""
    code = re.search(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.S)[1].replace("\\\\\n", " ")
    return [shlex.split(line, comments=True) for line in code.splitlines() if re.match(r" {4}(python|accelerate launch) ", line)]


def from_program(words):
    """A command from its program on, without what starts it: launchers, `python`, variables; all of it where there is no program."""
    place = next((place for place, word in enumerate(words) if word.endswith(".py")), 0)
    return words[place:]


def beginning_of(words, beginnings):
    """Those of `beginnings` with which a command begins, from its program on or from its first word."""
    shown = [" ".join(words), " ".join(from_program(words))]
    return [start for start in beginnings if any(line.startswith(start) for line in shown)]


def like_a_clone(folder):
    """Links in `folder` to what programs read of a checkout; what is written below preset/ stays in the folder."""
    for name in LINKED:
        os.symlink(ROOT / name, folder / name)
    (folder / "preset/models").mkdir(parents=True)
    for path in [*(ROOT / "preset").iterdir(), *(ROOT / "preset/models").iterdir()]:
        if path.name != "models":
            os.symlink(path, folder / path.relative_to(ROOT))
    return folder


def flags_behind(words, shorter):
    """The flags of all entries of `shorter`, {words: flags}, whose words a command has."""
    return [flag for key, flags in shorter.items() if set(key.split()) <= set(words) for flag in shlex.split(flags)]


def write_shown_files(text, folder):
    """Write a page's Python and YAML code whose first line is a comment with a file's name; of one name the last one stays."""
    for _, language, code in CODE.findall(text):
        shown = re.match(r"# ([\w/]+\.(?:py|yaml))\b", code)
        if language in ("python", "yaml") and shown:
            (folder / shown[1]).write_text(code, encoding="utf-8")


def run_as_shown(words, folder, shorter):
    """Run a command in `folder` with `flags_behind` it; it must end with exit code 0."""
    given = [each for word in from_program(words) for each in (sorted(glob.glob(word, root_dir=folder)) if "*" in word else [word])]
    more = flags_behind(words, shorter)
    done = run_program(*given, *more, cwd=folder, check=False)
    assert done.returncode == 0, (shlex.join([*given, *more]), done.stderr[-1500:])
    return done

"""The pages that people read: links lead somewhere, commands name flags that exist, sentences and lines are short."""

import ast
import importlib.util
import re
import sys
from functools import cache
from itertools import pairwise
from urllib.parse import unquote

import pytest
from conftest import ROOT
from documented import CODE, from_program, page_commands

from dp2osr.cli import flags_of

PAGES = [ROOT / "README.md", ROOT / "integrations/comfyui/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLAIN = [page for page in PAGES if page.name != "bad_inputs.md"]  # which is generated
WORDS_OF_README, WORDS_OF_A_SENTENCE, CHARACTERS_OF_A_LINE, READING_EASE = 900, 35, 160, 50
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IN_THE_REPOSITORY = re.compile(r"(?<!/)(?:bench|configs|docs|dp2osr|integrations|scripts|studies|tests)/[\w./-]+")
NAMES = {"--reward_config": "rewards", "--degradation": "degradation", "--protocol": "evaluation", "--published": "paper"}  # in configs
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
plain_pages = pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.name)


def without_code_and_tables(text):
    """The lines of a page that are prose, headings and lists."""
    return "\n".join("" if line.lstrip().startswith("|") else line for line in CODE.sub("", text).splitlines())


def prose(text):
    """The same as a reader sees it: links by their text, inline code as one word, no pictures and marks."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_code_and_tables(text))
    text = re.sub(r"`[^`]+`", "code", LINK.sub(lambda link: link[0][1 : link[0].rindex("](")], text))
    return re.sub(r"[*#]", "", text)


def words(text):
    return [word for word in text.split() if re.search(r"\w", word)]


def sentences(text):
    """Sentences of a page; headings and the points of a list end one."""
    text = re.sub(r"^#+ .*$|^ *(?:-|\d+\.) ", "\n\n", without_code_and_tables(text), flags=re.MULTILINE)
    text = re.sub(r"\b(Sec|Fig|Eq|e\.g|i\.e|al)\.", r"\1", prose(text))  # end none
    return [" ".join(part.split()) for block in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.!?])[)\"]?\s", f"{block}\n")]


def syllables(word):
    """An estimate: groups of vowels, without an e at the end that is not spoken ("page", "trained", not "table", "images")."""
    letters = re.sub(r"[^a-z]", "", word.lower())
    silent = re.search(r"[^aeiouy]e$|[^aeiouydt]ed$|[^aeiouycgsxz]es$", letters) and not re.search(r"[^aeiouyl]le[sd]?$|[cs]hes$", letters)
    return max(1, len(re.findall(r"[aeiouy]+", letters)) - bool(silent))


def reading_ease(text):
    """Flesch's reading ease of a page's prose; of what has no letter, as a number, nothing is counted."""
    counted = [[word for word in words(sentence) if re.search(r"[A-Za-z]", word)] for sentence in sentences(text)]
    counted = [sentence for sentence in counted if sentence]
    said = [word for sentence in counted for word in sentence]
    return 206.835 - 1.015 * len(said) / len(counted) - 84.6 * sum(map(syllables, said)) / len(said)


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    found = {}
    for heading in re.findall(r"^#+ +(.*?) *$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        shown = LINK.sub(lambda link: link[0][1 : link[0].rindex("](")], heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        if count:
            found[f"{name}-{count}"] = 0
    return set(found)


@every_page
def test_links_and_anchors_lead_somewhere(page):
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    assert not broken


def test_the_readme_is_short():
    assert len(words(prose((ROOT / "README.md").read_text(encoding="utf-8")))) <= WORDS_OF_README


@every_page
def test_lines_are_short(page):
    assert not [line for line in without_code_and_tables(page.read_text(encoding="utf-8")).splitlines() if len(line) > CHARACTERS_OF_A_LINE]


@plain_pages
def test_sentences_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert not [sentence for sentence in sentences(text) if len(words(sentence)) > WORDS_OF_A_SENTENCE]


@plain_pages
def test_pages_are_easy_to_read(page):
    assert reading_ease(page.read_text(encoding="utf-8")) >= READING_EASE


@plain_pages
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = {path for code in re.findall(r"`([^`\n]+)`", CODE.sub("", text)) for path in IN_THE_REPOSITORY.findall(code)}
    named |= {path for _, language, code in CODE.findall(text) if language == "bash" for path in IN_THE_REPOSITORY.findall(code)}
    assert not [path for path in named if not (ROOT / path.rstrip(".")).exists()]


@cache
def flags(program):
    """The flags of a program, from its settings where it has such, else those that it names."""
    path = ROOT / program
    text = path.read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "parse"]
    own = [call for call in calls if any(word.arg == "description" for word in call.keywords)]
    if not own:
        return set(re.findall(r'"(--\w+)"', text)) | {"--help"}
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [getattr(module, node.id) for node in ast.walk(own[0].args[0]) if isinstance(node, ast.Name)]
    return {"--help", "--config"}.union(*map(flags_of, classes))


@plain_pages
def test_commands_name_programs_and_flags_that_exist(page):
    unknown = []
    for words in page_commands(page.read_text(encoding="utf-8")):
        program, *given = from_program(words)
        if not program.endswith(".py"):
            continue
        assert (ROOT / program).is_file(), program
        unknown += [f"{program} {word}" for word in given if word.startswith("--") and word.partition("=")[0] not in flags(program)]
        for flag, value in pairwise(given):
            if flag in NAMES and not value.endswith(".yaml") and not (ROOT / "configs" / NAMES[flag] / f"{value}.yaml").exists():
                unknown.append(f"{program} {flag} {value}")
    assert not unknown


def test_the_check_of_commands_finds_what_is_wrong():
    code = """
        M="--image_path a"
        python gen_candidates.py $M \\
            --no_such_flag 3  # --not_this
        accelerate launch --x y label_rewards.py
        RUN="torchrun
            --z"
    """
    found = [["gen_candidates.py", "--image_path", "a", "--no_such_flag", "3"], ["label_rewards.py"], ["x.py", "--y"]]
    text = f"```bash\n{code}\n```\n| a cell | `$RUN x.py --y` | `no command` |\n"
    assert [from_program(words) for words in page_commands(text)] == found
    assert "--image_path" in flags("gen_candidates.py") and "--no_such_flag" not in flags("gen_candidates.py")
    assert {"--lr_path", "--key"} <= flags("scripts/user_study.py")


def test_the_count_of_words_and_sentences():
    text = "# A title\n\nSee [the page](x.md), `a b`, Sec. 4.\nTwo words.\n\n- one\n- two\n\n| a | table |\n\n```bash\ncode\n```\n"
    assert len(words(prose(text))) == 2 + 6 + 2 + 2
    assert [sentence for sentence in sentences(text) if sentence] == ["See the page, code, Sec 4.", "Two words.", "one", "two"]


def test_the_count_of_syllables_and_the_reading_ease():
    spoken = {
        1: "the page made trained called whole times noise needs",
        2: "pages table settled image matches model",
        3: "images degraded sentences processes prediction",
    }
    assert {word: syllables(word) for some in spoken.values() for word in some.split()} == {
        word: count for count, some in spoken.items() for word in some.split()
    }
    assert reading_ease("The cat sat on the mat, 12 times.\n") == pytest.approx(206.835 - 1.015 * 7 - 84.6)
    assert reading_ease("Multidimensional regularisation necessitates differentiability.\n") < 0

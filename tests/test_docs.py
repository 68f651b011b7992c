"""What the READMEs and docs promise: commands, settings, code, names, links, pictures."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import click
import pytest
import yaml

import ja_instruct.datasets
import ja_instruct.demo
from ja_instruct.pipeline_registry import register_pipelines

REPOSITORY = Path(__file__).resolve().parents[1]
# experiments are a dated log: their commands were right at their commits
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8")
    for path in [
        *sorted(REPOSITORY.glob("*.md")),
        *sorted(REPOSITORY.glob("docs/*.md")),
        REPOSITORY / "benchmarks/README.md",
        *sorted(REPOSITORY.glob("src/*/README.md")),
    ]
    if path.name != "CHANGELOG.md"
}
# figures of earlier commits stand there with the commands of these commits
DATED = {"docs/results.md"}
README, README_JA = PAGES["README.md"], PAGES["README.ja.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"@[A-Z][A-Z_]+@|\b(?:TODO|FIXME|TBD|XXX)\b")
SECONDS = 300
# these runs of Kedro are executed, if they have the parameter; of other commands options are parsed
RUN_WITH = {"data_filtering": "", "sft": "sft.training.max_steps", "inference": "inference.top_k"}


def blocks(language, pages=PAGES):
    return [text for page in pages for name, text in BLOCK.findall(PAGES[page]) if name == language]


def spans(text):
    return SPAN.findall(BLOCK.sub("", text))


def commands():
    """Every command of a bash block, and every complete command in a sentence."""
    pages = [page for page in PAGES if page not in DATED]
    lines = "".join(blocks("bash", pages)).replace("\\\n", " ").splitlines()
    named = [
        span
        for page in pages
        for span in spans(PAGES[page])
        if re.match(r"(?:\.venv/bin/)?(?:hf|kedro|make|pip|pre-commit|python) .", span)
    ]
    words = [shlex.split(line, comments=True) for line in lines + named]
    return list(dict.fromkeys(shlex.join(command) for command in words if command))


def yaml_blocks():
    """The settings by environment and file: ``# conf/<environment>/<file>.yml`` opens each."""
    found = {}
    for text in blocks("yaml"):
        opening = re.match(r"# conf/(\w+)/(\w+)\.yml(?=[:\s])", text)
        assert opening, f"no '# conf/<environment>/<file>.yml' opens this block:\n{text}"
        assert opening[1] not in ("base", "demo", "test"), "the project's own environment"
        files = found.setdefault(opening[1], {})
        if text not in files.get(opening[2], ""):  # both READMEs show it
            files[opening[2]] = files.get(opening[2], "") + text
    return found


def tables(page):
    """Every table of a page as rows of cells, its header first."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\|\n)+", PAGES[page], re.MULTILINE)
    ]


def first_column(page, header):
    """Return the code spans in the first column of the tables that begin with ``header``."""
    return [
        name
        for table in tables(page)
        if table[0][0] == header
        for row in table[2:]
        for name in SPAN.findall(row[0])
    ]


def tracked(*patterns):
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [path for name in done.stdout.splitlines() if (path := REPOSITORY / name).exists()]


def contains(whole, part):
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return whole == part


COMMANDS = commands()
SETTINGS = yaml_blocks()


@pytest.fixture(scope="module")
def reader(finished_project, tmp_path_factory):
    """Return a project with the environments that the docs show added to it."""
    copy = tmp_path_factory.mktemp("reader") / "project"
    shutil.copytree(finished_project, copy, symlinks=True)
    for environment, files in SETTINGS.items():
        (copy / "conf" / environment).mkdir()
        for name, text in files.items():
            (copy / "conf" / environment / f"{name}.yml").write_text(text, "utf-8")
    return copy


@pytest.fixture(scope="module")
def catalog(read_configuration):
    return read_configuration("base")["catalog"]


@pytest.fixture(scope="module")
def pipelines():
    return {name: p for name, p in register_pipelines().items() if name != "__default__"}


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {name for text in PAGES.values() for name, _ in BLOCK.findall(text)}
    # 'text' shows what a program prints
    assert kinds == {"bash", "yaml", "python", "text"} or kinds == {"bash", "yaml", "python"}


class TestReadmes:
    def test_are_short(self):
        assert len(README.splitlines()) <= 250
        assert len(README_JA.splitlines()) <= 250

    def test_have_the_same_sections(self):
        levels = [re.findall(r"^#+(?= )", text, re.MULTILINE) for text in (README, README_JA)]
        assert levels[0] == levels[1]

    def test_have_the_same_blocks(self):
        assert BLOCK.findall(README) == BLOCK.findall(README_JA)

    def test_have_the_same_tables(self):
        english, japanese = tables("README.md"), tables("README.ja.md")
        assert [len(table) for table in english] == [len(table) for table in japanese]
        for left, right in zip(english, japanese, strict=True):
            for rows in zip(left, right, strict=True):
                first, second = ([*map(SPAN.findall, row)] for row in rows)
                assert first == second

    def test_have_the_same_figures_in_their_tables(self):
        def figures(page):
            numbers = [re.findall(r"\d[\d,.]*\d|\d", cell) for cell in cells(page)]
            return [sorted(found) for found in numbers]

        def cells(page):
            results = [
                table for table in tables(page) if len(table[0]) == 3 and "NVIDIA" in str(table)
            ]
            return [row[1] for row in results[-1][2:]]

        expected = [[number.replace(",", "") for number in row] for row in figures("README.md")]
        translated = "".join(cells("README.ja.md")).replace("13 万", "130,000").replace(",", "")
        for row in expected:
            for number in row:
                assert number in translated, number

    def test_have_the_same_links(self):
        def targets(text):
            return {
                link.split("#")[0]
                for link in LINK.findall(text)
                if not link.startswith(("#", "README"))
            }

        assert targets(README) == targets(README_JA)

    @pytest.mark.parametrize("text", [README, README_JA], ids=["en", "ja"])
    def test_contents_lead_to_their_sections(self, text):
        # GitHub's anchors: lower case, spaces become hyphens, punctuation goes
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        anchors = [re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in headings]
        assert [link[1:] for link in LINK.findall(text) if link.startswith("#")] == anchors

    def test_settings_have_the_values_of_base(self, read_parameters):
        (table,) = [table for table in tables("README.md") if table[0][1] == "`base`"]
        assert len(table[2:]) == 10
        base = read_parameters("base")
        for name, value, _ in table[2:]:
            found = base
            for key in name.strip("`").split("."):
                found = found[key]
            assert found == yaml.safe_load(value.strip("`")), name

    def test_pictures_are_small(self):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
        assert len(pictures) == 2
        for picture in pictures:
            assert (REPOSITORY / picture).stat().st_size < 200_000


class TestCommands:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_works(self, command, request):
        words = shlex.split(command)
        program = words[0].removeprefix(".venv/bin/")
        check = {
            "hf": self.check_help,
            "kedro": self.check_kedro,
            "make": self.check_make,
            "pip": self.check_pip,
            "pre-commit": self.check_help,
            "python": self.check_script,
            "source": self.check_source,
        }.get(program)
        if check is None:
            pytest.fail(f"nothing here checks '{command}': add how to")
        check([program, *words[1:]], request)

    def check_make(self, words, request):
        if shutil.which("make") is None:
            pytest.skip("make is not installed")

        def plan(*arguments):
            done = subprocess.run(
                ["make", "-n", *arguments],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        targets = [word for word in words[1:] if "=" not in word]
        assert targets
        planned = plan(*words[1:])
        if targets != words[1:]:
            assert planned != plan(*targets), "the variable changes nothing"

    def check_source(self, words, request):
        assert words[1:] == [".venv/bin/activate"]  # 'make' creates it

    def check_pip(self, words, request):
        if " ".join(words) in ("pip install .", "pip install --no-deps ."):
            return
        install = re.fullmatch(r"pip install -e \.\[([\w,]+)\](?: -c (\S+))?", " ".join(words))
        assert install
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
        extras = set(install[1].split(","))
        assert extras <= set(project["optional-dependencies"])
        # vLLM's own pins are others than the project's
        assert (install[2] is None) == (extras == {"vllm"})
        assert install[2] is None or (REPOSITORY / install[2]).is_file()

    def check_script(self, words, request):
        if words[1] == "-m":
            done = request.getfixturevalue("run_python")("-m", words[2], "--help")
            given = {word.partition("=")[0] for word in words[3:] if word.startswith("--")}
            assert given <= set(re.findall(r"--[a-z-]+", done.stdout))
            return
        assert words[1] in {path.relative_to(REPOSITORY).as_posix() for path in tracked("*.py")}

    def check_help(self, words, request):
        program = Path(sysconfig.get_path("scripts")) / words[0]
        if not program.exists():
            pytest.skip(f"{words[0]} is not installed")
        environment = request.getfixturevalue("subprocess_environment")
        done = subprocess.run(
            [program, *words[1:], "--help"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def check_kedro(self, words, request):
        project = request.getfixturevalue("reader")
        name, options = self.read_options(words[1:], project)
        if options.get("env"):
            assert (project / "conf" / options["env"]).is_dir()
        pipeline = options.get("pipeline")
        if pipeline:
            assert pipeline in register_pipelines()
        if name == "run" and pipeline in RUN_WITH and RUN_WITH[pipeline] in " ".join(words):
            # the last --env counts
            arguments = [*words[2:], "--env=test"]
            result = request.getfixturevalue("invoke_kedro")(*arguments, cwd=project)
            assert result.exit_code == 0, result.output
            assert f"{pipeline} done in" in result.output

    def read_options(self, words, project):
        """Return the command's path below ``kedro`` and its options, as click reads them."""
        from kedro.framework.cli.cli import KedroCLI

        path = []
        command = KedroCLI(project)
        while isinstance(command, click.Group):
            context = command.make_context("kedro", words)
            name, command, words = command.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            path.append(name)
        return " ".join(path), command.make_context(name, words).params


class TestSettings:
    @pytest.mark.parametrize("environment", SETTINGS)
    def test_are_accepted_and_take_effect(self, environment, reader, catalog, monkeypatch):
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project

        monkeypatch.chdir(reader)
        bootstrap_project(reader)
        with KedroSession.create(reader, env=environment) as session:
            # refuses parameters that are unknown or out of range
            context = session.load_context()
        for name, text in SETTINGS[environment].items():
            part = yaml.safe_load(text)
            assert part
            assert contains(context.config_loader[name.split("_")[0]], part), name
            if name.startswith("catalog"):
                assert set(part) <= set(catalog)
                assert all(context.catalog.get(entry) is not None for entry in part)
            if name == "globals":
                filepath = context.config_loader["catalog"]["answers"]["filepath"]
                assert Path(filepath).parent.name == part["run_name"]


SESSIONS = [code for code in blocks("python") if "KedroSession" in code]


@pytest.mark.parametrize("code", SESSIONS, ids=lambda code: code.split("\n")[0])
def test_code_runs(code, reader, run_python):
    assert 'env="demo"' in code
    done = run_python("-c", code.replace('env="demo"', 'env="test"'), cwd=reader)
    assert done.stdout.strip() or "print(" not in code


class TestNames:
    def test_pipelines_of_the_table_are_all_there_are(self, pipelines):
        assert first_column("README.md", "pipeline") == list(pipelines)

    def test_every_pipeline_has_a_page_that_begins_with_its_command(self, pipelines):
        for name, page in re.findall(r"\[`(\w+)`\]\((docs/\w+\.md)\)", README):
            assert name in pipelines
            first = re.search(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)
            assert f"--pipeline={name}" in first[1]
            assert PAGES[page].index("```bash") < 120

    def test_datasets_of_the_table_are_in_the_catalog(self, catalog):
        names = first_column("docs/configuration.md", "dataset")
        assert names
        assert set(names) <= set(catalog)

    def test_extra_rules_are_those_of_tuned(self, read_parameters):
        assert first_column("docs/data_filtering.md", "rule") == [
            *read_parameters("tuned")["data_filtering"]["extra_rules"]
        ]

    def test_parameters_exist(self, read_parameters):
        base = read_parameters("base")
        sections = "|".join(base)
        for page, text in PAGES.items():
            for name in re.findall(rf"`((?:{sections})\.(?!jsonl?`)[a-z_.0-9]+)`", text):
                found = base
                for key in name.split("."):
                    assert key in found, f"{page}: {name}"
                    found = found[key]

    @pytest.mark.parametrize("page", ["README.md", "docs/reporting.md"])
    def test_places_are_those_of_the_configuration(self, page):
        settings = "".join(
            path.read_text("utf-8") for path in sorted((REPOSITORY / "conf/base").rglob("*.yml"))
        )
        places = [
            place
            for table in tables(page)
            for row in table[2:]
            for place in spans(row[1])
            if place.startswith("data/")
        ]
        assert places
        for place in places:
            assert place.rstrip("/").replace("<run>", "${globals:run_name}") in settings, place

    def test_classes_exist(self):
        names = {
            span
            for text in PAGES.values()
            for span in spans(text)
            if re.fullmatch(r"[A-Z]\w+Dataset", span)
        }
        assert names
        assert names <= {*ja_instruct.datasets.__all__, *ja_instruct.demo.__all__}

    @pytest.mark.parametrize("page", PAGES)
    def test_places_in_the_project_exist(self, page):
        top = "conf|src|docs|tests|benchmarks|notebooks|data/01_raw/demo"
        places = [
            span for span in spans(PAGES[page]) if re.fullmatch(rf"(?:{top})/[\w./*-]*", span)
        ]
        assert not [place for place in places if not list(REPOSITORY.glob(place))]

    @pytest.mark.parametrize("page", PAGES)
    def test_links_lead_somewhere(self, page):
        folder = (REPOSITORY / page).parent
        targets = [link.split("#")[0] for link in LINK.findall(PAGES[page]) if "://" not in link]
        assert not [target for target in targets if target and not (folder / target).exists()]


def test_picture_shows_the_pipelines():
    path = REPOSITORY / "docs/pictures/make_pictures.py"
    spec = importlib.util.spec_from_file_location("make_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = (path.parent / "pipelines.svg").read_text("utf-8")
    assert drawn == module.draw(), f"run 'python {path.relative_to(REPOSITORY)}' again"


def test_nothing_is_left_to_fill_in():
    left = [
        f"{path.relative_to(REPOSITORY)}: {found}"
        for path in tracked("*.md")
        for found in PLACEHOLDER.findall(path.read_text("utf-8"))
    ]
    assert not left

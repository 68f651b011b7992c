"""What README.md and CONTRIBUTING.md promise: commands, settings, code, names, links."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import click
import pytest
import yaml

import ja_instruct.datasets
from ja_instruct.pipeline_registry import register_pipelines

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text("utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"@[A-Z][A-Z_]+@|\b(?:TODO|FIXME|TBD|XXX)\b")
SECONDS = 300
# 'kedro run' of these is run, given the parameter; of every other command the options are read
RUN_WITH = {"data_filtering": "", "sft": "sft.training.max_steps", "inference": "inference.top_k"}


def blocks(language):
    return [text for name, text in BLOCK.findall(README) if name == language]


def spans(text):
    return SPAN.findall(BLOCK.sub("", text))


def commands():
    """Every command of a bash block, and those that a sentence names whole."""
    lines = "".join(text for name, text in BLOCK.findall(README + CONTRIBUTING) if name == "bash")
    lines = lines.replace("\\\n", " ").splitlines()
    named = [
        span
        for span in spans(README) + spans(CONTRIBUTING)
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
        files[opening[2]] = files.get(opening[2], "") + text
    return found


def tables():
    """Every table by the first cell of its header, as rows of cells."""
    found = {}
    for table in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE):
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        found.setdefault(header[0], []).extend(rows)
    return found


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
    """Return the project of somebody who follows the README, the settings added as it says."""
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
    kinds = {name for name, _ in BLOCK.findall(README)}
    # 'text' shows what a program prints
    assert kinds <= {"bash", "yaml", "python", "mermaid", "text"}
    assert {"bash", "yaml", "python"} <= kinds


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

    def check_pip(self, words, request):
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
            done = subprocess.run(
                [sys.executable, "-m", words[2], "--help"],
                env=request.getfixturevalue("subprocess_environment"),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
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


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_code_runs(code, reader, subprocess_environment):
    assert 'env="demo"' in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace('env="demo"', 'env="test"')],
        cwd=reader,
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print(" not in code


class TestNames:
    def test_pipelines_of_the_table_are_all_there_are(self, pipelines):
        assert [row[0].strip("`") for row in tables()["pipeline"]] == list(pipelines)

    def test_datasets_of_the_table_are_in_the_catalog(self, catalog):
        names = [row[0].strip("`") for row in tables()["dataset"]]
        assert names
        assert set(names) <= set(catalog)

    def test_places_are_those_of_the_configuration(self):
        settings = "".join(
            path.read_text("utf-8") for path in sorted((REPOSITORY / "conf/base").rglob("*.yml"))
        )
        places = [place for row in tables()["what"] for place in spans(row[1]) if "/" in place]
        assert places
        for place in places:
            assert place.rstrip("/").replace("<run>", "${globals:run_name}") in settings, place

    def test_classes_exist(self):
        names = {span for span in spans(README) if re.fullmatch(r"[A-Z]\w+Dataset", span)}
        assert names
        assert names <= set(ja_instruct.datasets.__all__)

    def test_diagram_is_what_the_pipelines_do(self, catalog, pipelines):
        (diagram,) = blocks("mermaid")
        labels = dict(re.findall(r"(\w+)\[\(?(\w+)\)?\]", diagram))
        arrows = set()
        for chain in re.findall(r"^.*-->.*$", diagram, re.MULTILINE):
            nodes = [re.match(r"\s*(\w+)", node)[1] for node in chain.split("-->")]
            arrows.update(itertools.pairwise(labels.get(node, node) for node in nodes))
        assert arrows
        for source, target in arrows:
            makes = pipelines[source].all_outputs() if source in pipelines else {source}
            takes = pipelines[target].inputs() if target in pipelines else {target}
            assert makes & takes & set(catalog), f"{source} --> {target}"

    @pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
    def test_places_in_the_project_exist(self, text):
        top = "conf|src|docs|tests|benchmarks|notebooks|data/01_raw/demo"
        places = [span for span in spans(text) if re.fullmatch(rf"(?:{top})/[\w./*-]*", span)]
        assert places
        assert not [place for place in places if not list(REPOSITORY.glob(place))]

    @pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
    def test_links_lead_somewhere(self, text):
        targets = [link.split("#")[0] for link in LINK.findall(text) if "://" not in link]
        assert not [target for target in targets if not (REPOSITORY / target).exists()]


def test_nothing_is_left_to_fill_in():
    left = [
        f"{path.relative_to(REPOSITORY)}: {found}"
        for path in tracked("*.md")
        for found in PLACEHOLDER.findall(path.read_text("utf-8"))
    ]
    assert not left

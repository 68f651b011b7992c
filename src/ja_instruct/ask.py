"""Answer one question on the command line: ``python -m ja_instruct.ask --env=demo 首都は?``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import validate_conf_source
from kedro.framework.project import configure_project, pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import MemoryDataset
from kedro.pipeline import pipeline
from kedro.utils import find_kedro_project

from ja_instruct.control_tokens import unmark
from ja_instruct.errors import InputError
from ja_instruct.preflight.run import check_run

NODES = ("build_prompts", "answer_tasks")


@click.command()
@click.argument("question")
@click.option("-e", "--env", help="The environment whose model, adapter and pairs are used.")
@click.option(
    "--conf-source", callback=validate_conf_source, help="Folder or archive of the configuration."
)
@click.option("--show-prompt", is_flag=True, help="Print the whole prompt too.")
def ask(question: str, env: str | None, conf_source: str | None, *, show_prompt: bool) -> None:
    """Answer QUESTION like the pipeline 'inference', and print its few-shot examples.

    The answer is added to the environment's answer store. Nothing else is changed.
    """
    record, answer, failure = answer_question(question, env, conf_source)
    if show_prompt:
        click.echo(f"{unmark(record['prompt'])}\n")
    for number, example in enumerate(record["shots"], start=1):
        click.secho(f"{number}. {example['score']:.3f}  {example['input']}", bold=True)
        click.echo(f"{example['output']}\n")
    click.secho(f"質問 ({record['prompt_tokens']} prompt tokens)", bold=True)
    click.echo(f"{question}\n")
    click.secho("回答", bold=True)
    click.echo(answer)
    if failure:
        raise InputError(f"no answer: {failure}")


def answer_question(
    question: str, env: str | None, conf_source: str | None = None
) -> tuple[dict[str, Any], str, str]:
    """Answer one question with the results of an environment's run.

    Args:
        question: Any text.
        env: The environment; None for Kedro's default.
        conf_source: Folder or archive of the configuration; None for that of the project.

    Returns:
        The question's record in ``prompts``, the answer, and the failure reason or an empty string.

    Raises:
        InputError: The working directory is not in a Kedro project and no configuration is given,
            or an input is missing.
    """
    from datasets import Dataset

    project = find_kedro_project(Path.cwd())
    if project is not None:
        bootstrap_project(project)
    elif conf_source is not None:
        project = Path.cwd()
        configure_project("ja_instruct")
    else:
        raise InputError(
            f"{Path.cwd()} is not in a Kedro project; change to the project's folder, or give "
            f"--conf-source"
        )
    answering = pipeline(pipelines["inference"].only_nodes(*NODES), inputs={"tasks": "question"})
    session: Any = KedroSession.create(project_path=project, env=env, conf_source=conf_source)
    with session:
        catalog = session.load_context().catalog
        catalog["question"] = MemoryDataset(Dataset.from_list([{"task_id": 0, "input": question}]))
        check_run(answering, catalog, only_missing_outputs=False)
        outputs: dict[str, Any] = {}  # a runner would save them in place of the run's
        for node in answering.nodes:
            inputs = {
                name: outputs[name] if name in outputs else catalog.load(name)
                for name in node.inputs
            }
            outputs |= node.run(inputs)
    failed = outputs["inference_report"]["failed"]
    reason = failed[0]["reason"] if failed else ""
    return outputs["prompts"][0], outputs["answers"][0]["output"], reason


if __name__ == "__main__":
    ask()

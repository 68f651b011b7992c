"""One question, its shots and its answer: ``python -m ja_instruct.ask --env=demo 首都は?``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import MemoryDataset
from kedro.pipeline import pipeline
from kedro.utils import find_kedro_project

from ja_instruct.errors import InputError
from ja_instruct.preflight.run import check_run

NODES = ("build_prompts", "answer_tasks")


@click.command()
@click.argument("question")
@click.option("-e", "--env", help="The environment whose model, adapter and pool are asked.")
@click.option("--show-prompt", is_flag=True, help="Show the whole prompt too.")
def ask(question: str, env: str | None, *, show_prompt: bool) -> None:
    """Answer QUESTION as the pipeline 'inference' would, and show the pairs it was given.

    Nothing of the run is changed but the store of answers, which has this one, too, from then on.
    """
    record, answer, failure = answer_question(question, env)
    if show_prompt:
        click.echo(f"{record['prompt']}\n")
    for number, shot in enumerate(record["shots"], start=1):
        click.secho(f"{number}. {shot['score']:.3f}  {shot['input']}", bold=True)
        click.echo(f"{shot['output']}\n")
    click.secho(f"質問 ({record['prompt_tokens']} prompt tokens)", bold=True)
    click.echo(f"{question}\n")
    click.secho("回答", bold=True)
    click.echo(answer)
    if failure:
        raise InputError(f"no answer: {failure}")


def answer_question(question: str, env: str | None) -> tuple[dict[str, Any], str, str]:
    """Ask one question with what an environment has made.

    Args:
        question: Any text.
        env: The environment; None is Kedro's default.

    Returns:
        The question's record in ``prompts``, the answer, and why it is none, if so.

    Raises:
        InputError: There is no project here, or something is missing that other pipelines make.
    """
    from datasets import Dataset

    project = find_kedro_project(Path.cwd())
    if project is None:
        raise InputError(f"{Path.cwd()} is in no Kedro project; change to the project's folder")
    bootstrap_project(project)
    asked = pipeline(pipelines["inference"].only_nodes(*NODES), inputs={"tasks": "question"})
    session: Any = KedroSession.create(project_path=project, env=env)
    with session:
        catalog = session.load_context().catalog
        catalog["question"] = MemoryDataset(Dataset.from_list([{"task_id": 0, "input": question}]))
        check_run(asked, catalog, only_missing_outputs=False)
        made: dict[str, Any] = {}
        for node in asked.nodes:
            # what a run would save stays here
            made |= node.run(
                {
                    name: made[name] if name in made else catalog.load(name)
                    for name in dict.fromkeys(node.inputs)
                }
            )
    failed = made["inference_report"]["failed"]
    return made["prompts"][0], made["answers"][0]["output"], failed[0]["reason"] if failed else ""


if __name__ == "__main__":
    ask()

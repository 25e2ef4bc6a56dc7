"""`pydvl-datainf ask`: which training samples an answer came from."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from pydvl_datainf.cli.commands import import_torch, main
from pydvl_datainf.cli.console import (
    checked_k,
    errors_as_messages,
    is_made_by_job,
    opened,
    say,
    show,
    write,
)
from pydvl_datainf.huggingface.extra import check_extra
from pydvl_datainf.report import Bounds, write_report, write_token_page
from pydvl_datainf.results.listing import named_apart, plain, rankings_of_test, records_of
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.tables import token_tables, top_tables

ENDS: Any = ("helpful", "harmful")
COLUMNS = 4
"""Training samples at either end that fit beside the tokens of an answer on most terminals."""


@main.command()
@click.argument("store")
@click.option("--prompt", help="What the model is asked; of a classifier the text.")
@click.option("--text-pair", help="Of a classifier of pairs, the second text.")
@click.option(
    "--answer",
    help="What it says; of a classifier the label.  [default: what the model says, greedily]",
)
@click.option("--span", help="The part of the answer that counts.  [default: all of it]")
@click.option(
    "--questions",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON lines with prompt (or messages), text_pair, answer, span and id in place of these "
    "options.",
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    help="Training samples at either end.  [default: 10; 4 in a table by token]",
)
@click.option(
    "--by-token", is_flag=True, help="Ask about each token that counts, in place of the answer."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write a report page, and no tables; by token, the answers' tokens coloured for each "
    "sample.",
)
@click.option("--keep", metavar="STORE", help="Keep the result as a run, for top and report.")
@click.option(
    "--job",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the run's job.  [default: what the run tells, with paths meant from here or from "
    "its folder]",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Tokens at which answers that are generated are cut.",
)
@click.option(
    "--follow-rows",
    is_flag=True,
    help="Read training rows, or the parts of a sum, wherever the run says that they are, over the "
    "network too.  [default: only in a folder beside STORE]",
)
@click.option("--overwrite", is_flag=True, help="Replace a run in --keep, or any file in --out.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show bars.")
def ask(
    store: str,
    prompt: str | None,
    text_pair: str | None,
    answer: str | None,
    span: str | None,
    questions: Path | None,
    k: int | None,
    by_token: bool,
    form: Literal["table", "json"],
    out: Path | None,
    keep: str | None,
    job: Path | None,
    max_new_tokens: int,
    follow_rows: bool,
    overwrite: bool,
    progress: bool,
) -> None:
    """Asks the model of the run in STORE, and shows which training samples its answer came from.

    The run is that of a job on texts, token-classification excepted, with rows: zarr. Prompt and
    answer are put together as the training data is, chat template included. Without an answer the
    model gives one, always taking the most probable token, or label. A sum of checkpoints is asked
    checkpoint by checkpoint, of which the last one answers.
    """
    _check_one(prompt, questions, text_pair, answer, span)
    with errors_as_messages():
        check_extra()
    of_job = partial(is_made_by_job, store)
    with errors_as_messages(of_job=of_job, place="--keep"), _warnings_as_lines():
        run = opened(store, follow_rows)
        import_torch(told=progress)
        # These need the extra [hf], which is known to be installed only here.
        from pydvl_datainf.asking import Question, read_questions
        from pydvl_datainf.jobfile.asking import ask_job
        from pydvl_datainf.jobfile.origin import origins_of

        asked = [] if prompt is None else [Question(prompt, answer, span, text_pair=text_pair)]
        asked += [] if questions is None else read_questions(questions)
        found = ask_job(
            run,
            origins_of(run, job),
            asked,
            by_token=by_token,
            max_new_tokens=max_new_tokens,
            store=keep,
            overwrite=overwrite,
            progress=progress,
        )
        if out is not None:
            write_page = write_token_page if by_token else write_report
            bounds = Bounds() if k is None else Bounds(k=k)
            say(f"Written to {write_page(found, out, bounds=bounds, overwrite=overwrite)}.")
        elif form == "json":
            write(json.dumps(_records(found, checked_k(found, k)), indent=2) + "\n")
        elif by_token:
            show(token_tables(found, checked_k(found, k or COLUMNS)))
        else:
            for position in range(found.plan.m):
                show(top_tables(found, position, checked_k(found, k), ENDS))


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints warnings as lines, without the places in code where they arise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="questions, question")
        warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}", err=True)
        yield


def _check_one(prompt: str | None, questions: Path | None, *of_prompt: str | None) -> None:
    if (prompt is None) == (questions is None):
        raise click.UsageError("Give either --prompt or --questions.")
    if questions is not None and any(given is not None for given in of_prompt):
        raise click.UsageError("With --questions, put texts, answers and spans into the file.")


def _records(found: InfluenceRun, k: int) -> list[dict[str, Any]]:
    """Each question with the training samples at either end."""
    columns = named_apart({"id": found.test_ids}, found.metadata("test"))
    questions = []
    for position in range(found.plan.m):
        told = {name: plain(values[position]) for name, values in columns.items()}
        for ranking in rankings_of_test(found, position, k, ENDS):
            told[ranking.end] = [
                {name: value for name, value in record.items() if name != "end"}
                for record in records_of(found, iter([ranking]))
            ]
        questions.append(told)
    return questions

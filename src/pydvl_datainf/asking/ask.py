"""Asks a finished run a question of one's own: which training samples an answer came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from warnings import warn

from zarr.storage import MemoryStore

from pydvl_datainf.asking.answering import (
    Answered,
    QuestionEncoder,
    answer_question,
    encode_answered,
)
from pydvl_datainf.asking.borders import border_notes
from pydvl_datainf.asking.encoding import Asked
from pydvl_datainf.asking.parts import (
    ENCODERS,
    check_places,
    given_for,
    place_of_part,
    runs_to_ask,
)
from pydvl_datainf.asking.questions import Question
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import ClassEncoder, TokenSamples
from pydvl_datainf.influence import BlockwiseInfluence
from pydvl_datainf.results.by_token import BY_TOKEN
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import NORMALIZE
from pydvl_datainf.runner.run import run_influences
from pydvl_datainf.runner.sums import sum_runs
from pydvl_datainf.runner.worker_inputs import Built

AT_ONCE = 64
"""Questions that are read, and sorted by length, together."""


def ask(
    run: InfluenceRun,
    influence: Built | Sequence[Built],
    questions: str | Question | Sequence[str | Question],
    *,
    encoder: QuestionEncoder | Sequence[QuestionEncoder],
    answer: str | None = None,
    span: str | None = None,
    by_token: bool = False,
    max_new_tokens: int = 256,
    store: Any = None,
    overwrite: bool = False,
    progress: bool = False,
) -> InfluenceRun:
    """Computes the influence of each training sample of a run on answers to questions.

    Answers are those of a language model, of an encoder and a decoder, or labels of a classifier.
    A sum of runs is asked part by part: the last one's model answers where no answer is given, and
    the influences on that answer are added with the weights of the sum.

    Args:
        run: complete, made with rows="zarr": the training data is not read again. Or a sum of such
            runs.
        influence: of the model of the run, with its objective, or a function that builds it; for a
            sum one for each of its parts, in their order.
        questions: a prompt or a question, or several.
        encoder: that of the training data: its template and its length are used; for a sum one, or
            one for each of its parts.
        answer: to a prompt; None = what the model says, greedily, or the label that it gives.
        span: the part of that answer that counts.
        by_token: ask about each token that counts by itself, in place of the answer. Where the
            objective adds the losses of tokens, these influences add up to that on the answer;
            where it takes their mean, their mean is that.
        max_new_tokens: tokens at which answers that are generated are cut.
        store: where the result goes; None = it is kept in memory. The parts of a sum go beside it.
        overwrite: replace a run in the store.
        progress: show bars.

    Returns:
        A run whose test samples are the questions, by their ids or else their numbers from 0, or
        the tokens of answers ("0.0", "0.1" and so on), with the columns `prompt`, `answer`,
        `origin` ("given", "generated" or "predicted") and, but for labels, `counted`, the tokens
        that count. `top`, `scores`, tables and reports read it as they read any run.

    Raises:
        SourceError: if there is no question, one cannot be tokenised as the training data was, or
            its span is no part of the answer.

    Example:
        >>> found = ask(run, influence, "Who wrote it?", encoder=encoder)  # doctest: +SKIP
        >>> ids, scores = found.top(3, test=0)  # doctest: +SKIP
    """
    runs = runs_to_ask(run)
    if run.parts:
        check_places(run, runs, store)
    influences: list[Built] = given_for(run, influence, "influence models")
    encoders: list[QuestionEncoder] = given_for(run, encoder, ENCODERS)
    listed = _listed(questions, answer, span)
    if by_token and any(isinstance(each, ClassEncoder) for each in encoders):
        raise SourceError("A label has no tokens. Ask a classifier without by_token.")
    names, last = _ids(listed), len(runs) - 1
    built = _built(influences[last])
    answered = [
        answer_question(built.model, encoders[last], question, number, max_new_tokens)
        for number, question in enumerate(listed, 1)
    ]
    asked = _encoded(built, encoders[last], answered)
    for note in border_notes(runs[last], encoders[last], list(zip(answered, asked, strict=True))):
        warn(note, stacklevel=2)
    told = _told_by_token(built) if by_token else {}
    queries = _Queries(names, answered, told, {"overwrite": overwrite, "progress": progress})
    if not run.parts:
        return queries.ask(run, built, encoders[last], asked, store)
    place = place_of_part(store, last)
    found = {last: queries.ask(runs[last], built, encoders[last], asked, place)}
    del built  # one model at a time
    for k in range(last):
        model, place = _built(influences[k]), place_of_part(store, k)
        asked = _encoded(model, encoders[k], answered)
        found[k] = queries.ask(runs[k], model, encoders[k], asked, place)
    return queries.add(run, [found[k] for k in range(len(runs))], store)


Named: TypeAlias = tuple[str, Answered, Asked]
"""A question by its name, with its answer, as text and tokenised."""


@dataclass(frozen=True, slots=True)
class _Queries:
    """What every part of a run is asked, and how what is found is kept.

    Args:
        names: of the questions.
        answered: the questions, with their answers.
        told: where each token is asked about, how their losses make that of an answer.
        settings: of all runs that are made.
    """

    names: Sequence[str]
    answered: Sequence[Answered]
    told: Mapping[str, str]
    settings: Mapping[str, Any]

    def ask(
        self,
        run: InfluenceRun,
        influence: BlockwiseInfluence,
        encoder: QuestionEncoder,
        asked: Sequence[Asked],
        store: Any,
    ) -> InfluenceRun:
        """A further query of a run."""
        named = list(zip(self.names, self.answered, asked, strict=True))
        if self.told:
            named = _by_token(named)
        samples = TokenSamples([one.sample for _, _, one in named], _padding(encoder, influence))
        return run_influences(
            influence,
            samples.to_loader(AT_ONCE),
            run,
            _or_memory(store),
            ids={"test": [name for name, _, _ in named]},
            metadata={"test": _columns(encoder, named), "run": self.told},
            normalize=run.attrs["fingerprint"].get(NORMALIZE),
            **self.settings,
        )

    def add(self, run: InfluenceRun, found: Sequence[InfluenceRun], store: Any) -> InfluenceRun:
        """What was found of the parts of a sum, added as these were."""
        job = run.metadata("run").get("job")
        return sum_runs(
            found,
            _or_memory(store),
            [part.weight for part in run.parts],
            check_data=False,  # texts are the same; whoever made the sum could allow other tokens
            metadata={**self.told, **({} if job is None else {"job": job})},
            **self.settings,
        )


def _by_token(named: Sequence[Named]) -> list[Named]:
    """Each token that counts by itself, named by the question and its number."""
    return [
        (f"{name}.{t}", answered, part)
        for name, answered, one in named
        for t, part in enumerate(one.by_token())
    ]


def _or_memory(store: Any) -> Any:
    return MemoryStore() if store is None else store


def _columns(encoder: QuestionEncoder, named: Sequence[Named]) -> dict[str, list[str]]:
    columns = {"prompt": [one.prompt for _, _, one in named]}
    is_class = isinstance(encoder, ClassEncoder)
    if isinstance(encoder, ClassEncoder) and encoder.text_pair is not None:
        columns["text_pair"] = [str(answered.question.text_pair) for _, answered, _ in named]
    columns["answer"] = [one.answer for _, _, one in named]
    columns["origin"] = [answered.origin for _, answered, _ in named]
    return columns if is_class else columns | {"counted": ["".join(o.tokens) for _, _, o in named]}


def _padding(encoder: QuestionEncoder, influence: BlockwiseInfluence) -> int:
    """A token to fill batches; classifiers of decoders look for the one of their configuration."""
    of_model = getattr(getattr(influence.model, "config", None), "pad_token_id", None)
    if isinstance(encoder, ClassEncoder) and of_model is not None:
        return int(of_model)
    return int(encoder.tokenizer.pad_token_id or 0)  # behind the mask any will do


def _told_by_token(influence: BlockwiseInfluence) -> dict[str, str]:
    """How losses of tokens make that of an answer."""
    objective = influence.test_objective or influence.objective
    return {BY_TOKEN: str(getattr(objective, "reduction", "other"))}


def _encoded(
    influence: BlockwiseInfluence, encoder: QuestionEncoder, answered: Sequence[Answered]
) -> list[Asked]:
    return [
        encode_answered(influence.model, encoder, one, number)
        for number, one in enumerate(answered, 1)
    ]


def _built(influence: Built) -> BlockwiseInfluence:
    return influence if isinstance(influence, BlockwiseInfluence) else influence()


def _listed(
    questions: str | Question | Sequence[str | Question], answer: str | None, span: str | None
) -> list[Question]:
    if isinstance(questions, str):
        questions = Question(questions, answer, span)
    elif answer is not None or span is not None:
        raise SourceError("'answer' and 'span' belong to a prompt; put them into the questions.")
    several = [questions] if isinstance(questions, Question) else questions
    listed = [Question(each) if isinstance(each, str) else each for each in several]
    if not listed:
        raise SourceError("There are no questions.")
    return listed


def _ids(questions: Sequence[Question]) -> list[str]:
    """Names of questions: their own, or their numbers from 0."""
    ids = [str(i) if q.id is None else q.id for i, q in enumerate(questions)]
    twice = next((name for i, name in enumerate(ids) if name in ids[:i]), None)
    if twice is not None:
        raise SourceError(f"Two questions have the id {twice!r}. Give each its own.")
    return ids

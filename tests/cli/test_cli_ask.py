"""`pydvl-datainf ask`: a question has the scores that it has as a test sample of a job."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import dense
from commands import failed, printed
from jobs import changed, write_job, write_language_job
from pydvl_datainf import InfluenceRun
from pydvl_datainf.report import pictures
from tuned import sums, tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
QUESTION = {"prompt": "What is 3 plus 4?", "answer": " It is 7, I think 7."}
WITH_ROWS = {"rows": "zarr", "exact_sample": 0}
EXACT = {"dtype": "float64", "rows": "zarr", "exact_sample": 0}


def asked(*arguments):
    return json.loads(printed("ask", *arguments, "--format", "json", "--no-progress"))


def run(folder, **fields):
    """The run of the folder's job with these fields."""
    changed(folder, **fields)
    printed("run", folder / "job.yaml", "--no-progress")
    return InfluenceRun(folder / json.loads((folder / "job.yaml").read_text())["out"])


@pytest.fixture(scope="module")
def plain(tuned, tmp_path_factory):
    """A run with its rows, which tests ask and leave as it is."""
    return run(write_language_job(tmp_path_factory.mktemp("plain"), tuned), **WITH_ROWS)


def scores_of(question, run):
    """Influences of all training samples, by their order, from what `ask` prints."""
    found = {r["id"]: r["influence"] for r in question["helpful"]}
    return np.array([found[i] for i in run.train_ids.tolist()])


def close(found, expected, bound=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("fields", [{"chat": True}, {"method": "exact"}], ids=str)
def test_an_answer_has_the_scores_that_it_has_as_a_test_sample(folder, fields):
    write_lines(folder / "test.jsonl", [{"id": "own", **QUESTION}])
    made = run(folder, **EXACT, **fields)
    args = [part for name, text in QUESTION.items() for part in (f"--{name}", text)]
    (found,) = asked(made.store, *args, "--k", "20")
    close(scores_of(found, made), made.scores[0])
    assert [r["influence"] for r in found["helpful"]] == sorted(scores_of(found, made))[::-1]
    assert found["harmful"] == [
        {**record, "rank": i + 1} for i, record in enumerate(found["helpful"][::-1])
    ]
    assert found["origin"] == "given"
    assert found["helpful"][0]["prompt"].startswith("What is")


def test_conversations_have_the_scores_that_they_have_as_test_samples(folder):
    def talk(record):
        roles = {"user": record["prompt"], "assistant": record["answer"]}
        return {"talk": [{"role": role, "content": text} for role, text in roles.items()]}

    write_lines(folder / "train.jsonl", [talk(record) for record in sums(9)])
    write_lines(folder / "test.jsonl", [talk(QUESTION), talk(sums(3)[2])])
    made = run(folder, **EXACT, columns={"messages": "talk"})
    questions = [
        {**QUESTION, "id": "a"},
        {"messages": talk(sums(3)[2])["talk"], "id": "b"},
    ]
    path = write_lines(folder / "questions.jsonl", questions)
    found = asked(made.store, "--questions", path, "--k", "9")
    for question, expected in zip(found, made.scores[...], strict=True):
        close(scores_of(question, made), expected)
    assert [question["id"] for question in found] == ["a", "b"]
    assert found[1]["prompt"] == "user: What is 2 plus 4?"


def tuned_model(tuned):
    base = AutoModelForCausalLM.from_pretrained(tuned.causal).double()
    return PeftModel.from_pretrained(base, tuned.causal_adapter, is_trainable=True).eval()


def rows_of(model, losses):
    """Gradients of losses by parameter, as rows."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = [torch.autograd.grad(loss, list(named.values()), retain_graph=True) for loss in losses]
    return {n: torch.stack([g[i].flatten() for g in grads]) for i, n in enumerate(named)}


def token_losses(model, text, counted, end=True):
    """−log p of each token of a text whose characters overlap those that count, by the oracle."""
    words = tokenizer()
    encoded = words(text, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"] + [words.eos_token_id]])
    log_p = model(ids).logits[0].log_softmax(-1)
    marked = [
        any(i in counted for i in range(start, stop)) for start, stop in encoded["offset_mapping"]
    ]
    places = [t for t, count in enumerate([*marked, end]) if count]
    return torch.stack([-log_p[t - 1, ids[0, t]] for t in places])


def influences(made, model, losses, rows):
    """Σ over blocks of v (DataInf's inverse) g for queries with these losses."""
    v, blocks = rows_of(model, losses), made.attrs["fingerprint"]["blocks"]
    total = 0
    for block, (name,) in blocks.items():
        inverse = dense.datainf_matrix(rows[name], made.damping[block])
        total = total + v[name] @ inverse @ rows[name].T
    return total.detach().numpy()


HALF = 2e-3
"""Of the largest score: rows are kept in half precision."""
REDUCTIONS = {"mean": torch.mean, "sum": torch.sum}


def training_rows(model, reduction):
    texts = [(record["prompt"], record["answer"]) for record in sums(20)]
    losses = [reduction(token_losses(model, q + a, range(len(q), len(q + a)))) for q, a in texts]
    return rows_of(model, losses)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_only_a_span_counts_and_tokens_add_up(folder, tuned, name):
    made, reduction, model = (
        run(folder, **EXACT, reduction=name),
        REDUCTIONS[name],
        tuned_model(tuned),
    )
    text = QUESTION["prompt"] + QUESTION["answer"]
    span = {i for i, letter in enumerate(text) if letter == "7"}
    assert len(span) == 2
    args = (made.store, "--prompt", QUESTION["prompt"], "--answer", QUESTION["answer"])
    args = (*args, "--k", "20", "--span", "7")
    (found,), by_token = asked(*args), asked(*args, "--by-token")
    assert [q["id"] for q in by_token] == ["0.0", "0.1"]
    assert "".join(q["counted"] for q in by_token) == found["counted"]
    assert found["counted"].replace(" ", "") == "77"
    parts = np.stack([scores_of(question, made) for question in by_token])
    added = reduction(torch.from_numpy(parts), 0).numpy()
    close(scores_of(found, made), added, 1e-7)  # Llama takes norms in float32
    rows = training_rows(model, reduction)
    losses = token_losses(model, text, span, end=False)
    close(parts, influences(made, model, losses, rows), HALF)
    close(scores_of(found, made), influences(made, model, [reduction(losses)], rows)[0], HALF)
    whole = token_losses(model, text, range(len(QUESTION["prompt"]), len(text)))
    other = influences(made, model, [reduction(whole)], rows)[0]
    assert np.abs(scores_of(found, made) - other).max() > 10 * HALF * np.abs(other).max()


def test_of_a_preference_the_log_probability_of_an_answer_is_asked(folder, tuned):
    pairs = [
        {"prompt": r["prompt"], "chosen": r["answer"], "rejected": f" No, {i}."}
        for i, r in enumerate(sums(8))
    ]
    write_lines(folder / "train.jsonl", pairs)
    write_lines(folder / "test.jsonl", pairs[:2])
    made = run(folder, **EXACT, task="preference", beta=0.3, columns={})
    model = tuned_model(tuned)

    def log_p(question, answer):
        text = question + answer
        return -token_losses(model, text, range(len(question), len(text))).sum()

    def lead(pair):
        return log_p(pair["prompt"], pair["chosen"]) - log_p(pair["prompt"], pair["rejected"])

    with torch.no_grad(), model.disable_adapter():
        reference = [lead(pair) for pair in pairs]
    losses = [
        torch.nn.functional.softplus(-0.3 * (lead(pair) - before))
        for pair, before in zip(pairs, reference, strict=True)
    ]
    rows = rows_of(model, losses)
    args = [part for name, text in QUESTION.items() for part in (f"--{name}", text)]
    (found,) = asked(made.store, *args, "--k", "8")
    expected = influences(made, model, [-log_p(*QUESTION.values())], rows)[0]
    close(scores_of(found, made), expected, HALF)


@pytest.mark.parametrize("fields", [{}, {"chat": True}], ids=["plain", "template"])
def test_an_answer_that_is_not_given_is_generated_greedily(folder, tuned, fields):
    made, words = run(folder, rows="zarr", exact_sample=0, **fields), tokenizer()
    base = AutoModelForCausalLM.from_pretrained(tuned.causal)
    model = PeftModel.from_pretrained(base, tuned.causal_adapter).eval()
    template = "<user>{}</s><assistant>" if fields else "{}"
    text = template.format(QUESTION["prompt"])
    ids = words(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert words.eos_token_id not in ids[start:]
    args = ("--prompt", QUESTION["prompt"], "--max-new-tokens", "6")
    (found,) = asked(made.store, *args)
    assert found["origin"] == "generated"
    assert found["answer"] == words.decode(ids[start:])
    args = ("--prompt", QUESTION["prompt"], "--answer", found["answer"], "--span", found["answer"])
    (again,) = asked(made.store, *args)  # the end does not count: it was cut
    assert again["helpful"] == found["helpful"]
    assert again["origin"] == "given"


def test_the_answer_is_shown_as_tables_a_page_or_a_run(plain, tmp_path, monkeypatch):
    empty = pictures.Picture("data:,", "data:,", "not drawn")
    monkeypatch.setattr(pictures, "drawn", lambda *arguments: empty)
    args = ("ask", plain.store, *(p for n, t in QUESTION.items() for p in (f"--{n}", t)))
    (found,) = asked(*args[1:], "--k", "3")
    said = " ".join(
        printed(*args, "--k", "3", "--no-progress", "--keep", tmp_path / "kept.zarr").split()
    )
    assert "It is 7, I think 7." in said
    assert "The 3 training samples most helpful to it" in said
    assert f"{found['helpful'][0]['influence']:+.2e} {found['helpful'][0]['id']}" in said
    kept = InfluenceRun(tmp_path / "kept.zarr")
    assert kept.top(1, "0")[1][0] == np.float32(found["helpful"][0]["influence"])
    other = ("ask", plain.store, "--prompt", "another", "--answer", "one", "--no-progress")
    message = failed(1, *other, "--keep", tmp_path / "kept.zarr")
    assert "holds another run" in message
    assert "Warning: questions, question 1: no space stands between prompt and answer" in message
    printed(*other, "--keep", tmp_path / "kept.zarr", "--overwrite")
    page = tmp_path / "page.html"
    assert f"Written to {page}." in printed(*args, "--no-progress", "-o", page)
    assert "It is 7, I think 7." in page.read_text("utf-8")


def test_a_run_without_rows_says_how_to_make_one_that_has_them(folder):
    made = run(folder, rows="memory", exact_sample=0)
    message = failed(1, "ask", made.store, "--prompt", "a")
    assert "keeps no training rows" in message
    assert "is made with rows: zarr in its job" in message


def test_another_model_is_refused(plain, folder, tuned):
    shutil.copytree(tuned.causal_adapter, folder / "adapter")
    changed(folder, adapter=str(folder / "adapter"), rows="zarr")
    message = failed(1, "ask", plain.store, "--prompt", "a", "--job", folder / "job.yaml")
    assert "is not of the job in" in message


REFUSED = [
    ((), 2, "Give either --prompt or --questions"),
    (("--questions", "q.jsonl", "--span", "a"), 2, "put texts, answers and spans into the file"),
    (("--questions", "q.jsonl"), 1, "q.jsonl, line 1: A question is either a prompt or messages"),
    (("--prompt", "a", "--answer", "b", "--span", "c"), 1, "'c' is no part of the answer 'b'"),
    (("--prompt", "a", "--answer", "b", "--span", ""), 1, "'' is no part of the answer 'b'"),
    (("--prompt", ""), 1, "leaves no answer to generate"),
    (("--prompt", "a " * 600), 1, "leaves no answer to generate within max_length=512"),
]


def test_what_cannot_be_asked_is_refused(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "q.jsonl", [{"answer": "a"}])
    for arguments, code, message in REFUSED:
        assert message in failed(code, "ask", plain.store, *arguments)


def test_tasks_that_give_no_answers_are_refused(folder, tuned):
    words = [{"words": ["What", "is"], "tags": ["0", "1"]}] * 3
    for name in ("train", "test"):
        write_lines(folder / f"{name}.jsonl", words)
    fields = {"task": "token-classification", "model": str(tuned.tagger), "columns": {}}
    job = json.loads((folder / "job.yaml").read_text()) | fields | {"rows": "zarr"}
    del job["adapter"]
    write_job(folder, job | {"parameters": ["classifier.*"], "exact_sample": 0})
    printed("run", folder / "job.yaml", "--no-progress")
    message = failed(1, "ask", folder / "out.zarr", "--prompt", "a")
    assert "Models of task token-classification give no answers" in message


def test_answers_by_token_are_one_table_or_a_page(plain, tmp_path):
    args = ("ask", plain.store, *(p for n, t in QUESTION.items() for p in (f"--{n}", t)))
    args = (*args, "--by-token", "--no-progress")
    page, kept = tmp_path / "page.html", tmp_path / "kept.zarr"
    assert f"Written to {page}." in printed(*args, "-o", page, "--keep", kept)
    by_token = InfluenceRun(kept).scores[...]
    assert page.read_text("utf-8").count('title="') == len(by_token) * 20
    said = printed(*args)
    assert said.count("Influences in units of") == 1
    unit = float(re.search(r"Influences in units of (\S+),", said)[1])
    lines = [line.split() for line in said.splitlines()]
    (total,) = (line[1:] for line in lines if line[:1] == ["all"])
    whole = np.sort(by_token.mean(0))
    ends = [*whole[:-5:-1], *whole[3::-1]]
    np.testing.assert_allclose(np.array(total, float) * unit, ends, rtol=0, atol=0.0051 * unit)

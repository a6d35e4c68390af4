"""Classification as text: the questions, their tokens, and the likelihood of each label's answer."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdalign.data.tasks import (
    GLUE,
    ClassificationTask,
    DataSource,
    Examples,
    PromptedExample,
    PromptTemplate,
    find_task,
    prompt_examples,
    prompt_template,
)
from kdalign.errors import NotFinite, UsageError
from kdalign.evaluation import multiple_choice
from kdalign.evaluation.multiple_choice import choose, label_scores, tokenize_answers
from support.family_setting import model, tokenizer
from support.tiny import sentences

WORDED = [name for name in GLUE if name != "stsb"]

# A row of each task, and its question as lm-evaluation-harness 0.4.13 puts it.
BY_HAND = {
    "cola": (
        ["They drank the pub."],
        "They drank the pub.\nQuestion: Does this sentence make sense?\nAnswer:",
        (" no", " yes"),
    ),
    "sst2": (  # the space at a phrase's end stays
        ["hide new secretions "],
        "hide new secretions \nQuestion: Is this sentence positive or negative?\nAnswer:",
        (" negative", " positive"),
    ),
    "mrpc": (
        ["A fell .", "B rose ."],
        "Sentence 1: A fell .\nSentence 2: B rose .\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        (" no", " yes"),
    ),
    "qqp": (
        ["Why?", "How?"],
        "Question 1: Why?\nQuestion 2: How?\nQuestion: Do both questions ask the same thing?\nAnswer:",
        (" no", " yes"),
    ),
    "mnli": (
        ["It rained. ", " It was wet"],
        "It rained. \nQuestion: It was wet. True, False or Neither?\nAnswer:",
        (" True", " Neither", " False"),
    ),
    "qnli": (
        ["Who came?", "Ann came."],
        "Who came?\nAnn came.\nQuestion: Does this response answer the question?\nAnswer:",
        (" yes", " no"),
    ),
    "rte": (
        ["It rained.", "It was wet."],
        "It rained.\nQuestion: It was wet. True or False?\nAnswer:",
        (" True", " False"),
    ),
    "wnli": (
        ["It rained.", "It was wet."],
        "It rained.\nQuestion: It was wet. True or False?\nAnswer:",
        (" False", " True"),
    ),
}


def examples(columns, labels=None, split="validation"):
    return Examples(split, tuple(map(tuple, columns)), None if labels is None else np.array(labels))


def reviews(**changes):
    return ClassificationTask("reviews", ("text",), ("bad", "good"), ("accuracy",), DataSource(), **changes)


# Questions


@pytest.mark.parametrize("name", WORDED)
def test_a_glue_question_reads_as_worked_by_hand(name):
    row, context, answers = BY_HAND[name]
    assert prompt_examples(GLUE[name], examples([[text] for text in row])) == [PromptedExample(context, answers)]


@pytest.mark.parametrize("text", ["It was wet.", " It was wet. ", "It was wet", "It was wet "])
def test_the_hypothesis_of_mnli_ends_with_one_full_stop(text):
    (question,) = prompt_examples(GLUE["mnli"], examples([["A."], [text]]))
    assert question.context == "A.\nQuestion: It was wet. True, False or Neither?\nAnswer:"


def test_a_score_cannot_be_asked_for():
    with pytest.raises(UsageError, match="'stsb' has a score, which no word stands for"):
        prompt_examples(GLUE["stsb"], examples([["a"], ["b"]]))


def test_a_task_without_a_prompt_names_its_columns_and_labels():
    task = ClassificationTask(
        "t", ("subject_line", "body"), ("billing", "bug", "not_ours"), ("accuracy",), DataSource(), "queue"
    )
    (question,) = prompt_examples(task, examples([["Hi {there}"], ["It broke."]]))
    assert question.context == (
        "subject line: Hi {there}\nbody: It broke.\nQuestion: What is the queue: billing, bug or not ours?\nAnswer:"
    )
    assert question.answers == (" billing", " bug", " not ours")
    (question,) = prompt_examples(reviews(), examples([["Fine."]]))
    assert question.context == "text: Fine.\nQuestion: What is the label: bad or good?\nAnswer:"


def test_text_that_looks_like_a_place_stays_text():
    wording = PromptTemplate("{{{a}}} {b} }}{{", ("x", "y"))
    assert wording.fill(("a", "b"), ("{b}", "{{a}}")) == "{{b}} {{a}} }{"


# Solved examples

SOLVED = examples([["one", "two", "three", "four", "two"]], [0, 1, 0, 1, 0], "train")
ASK = reviews(wording=PromptTemplate("{text}?", ("no", "yes")))


def shown(question):
    return question.context.split("\n\n")[:-1]


def test_solved_examples_stand_before_the_question_with_their_answers():
    (question,) = prompt_examples(ASK, examples([["five"]]), SOLVED, 5, 0)
    *before, last = question.context.split("\n\n")
    assert last == "five?"
    assert sorted(before) == ["four? yes", "one? no", "three? no", "two? no", "two? yes"]
    assert question.answers == (" no", " yes")


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=12),
    st.integers(0, 3),
    st.integers(0, 100),
)
def test_solved_examples_are_others_and_decided_by_seed_and_number(texts, train, count, seed):
    shots = examples([train], [row % 2 for row in range(len(train))], "train")
    if any(len(train) - train.count(text) < count for text in texts):
        with pytest.raises(UsageError, match="with other texts"):
            prompt_examples(ASK, examples([texts]), shots, count, seed)
        return
    found = prompt_examples(ASK, examples([texts]), shots, count, seed)
    possible = [f"{text}? {('no', 'yes')[row % 2]}" for row, text in enumerate(train)]
    for text, question in zip(texts, found, strict=True):
        before = shown(question)
        assert len(before) == count
        assert not any(each.startswith(f"{text}?") for each in before), "never the example itself"
        assert all(before.count(each) <= possible.count(each) for each in before), "each row at most once"
    assert prompt_examples(ASK, examples([texts]), shots, count, seed) == found
    assert prompt_examples(ASK, examples([texts[:1]]), shots, count, seed) == found[:1], (
        "the first of more are the same"
    )


def test_every_question_and_seed_draws_anew_and_every_row_is_drawn_as_often():
    shots = examples([[f"t{row}" for row in range(10)]], [0, 1] * 5, "train")
    asked = examples([["q"] * 3000])
    found = prompt_examples(ASK, asked, shots, 2, 0)
    drawn = [text for question in found for text in shown(question)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 10
    assert abs(counts - 600).max() < 5 * np.sqrt(6000 * 0.1 * 0.9)
    assert len({question.context for question in found}) == 90, "all ordered pairs"
    assert prompt_examples(ASK, asked, shots, 2, 1) != found


def test_solved_examples_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="2 solved examples cannot be drawn from no split"):
        prompt_examples(ASK, examples([["a"]]), None, 2)
    with pytest.raises(UsageError, match="cannot be drawn from split 'test', which has no labels"):
        prompt_examples(ASK, examples([["a"]]), examples([["b", "c"]], split="test"), 2)
    with pytest.raises(UsageError, match="4 solved examples before example 0, but split 'train' has only 3 with other"):
        prompt_examples(ASK, examples([["two"]]), SOLVED, 4)


# Task files


def from_file(folder, rest, labels="labels: [negative, positive]"):
    (folder / "mine.yaml").write_text(f"columns: [title, body]\ndata: .\n{labels}\n{rest}\n")
    return find_task(str(folder / "mine.yaml"))


def test_a_task_file_may_bring_prompt_and_answers(tmp_path):
    task = from_file(tmp_path, 'prompt: "{title}: {body}\\nIs it good?"\nanswers: [no, yes]')
    row = examples([["Film"], ["It was fine."]])
    assert prompt_examples(task, row) == [PromptedExample("Film: It was fine.\nIs it good?", (" no", " yes"))]
    assert prompt_template(task).origin == "prompt of its own"


def test_of_prompt_and_answers_the_one_not_given_is_plain(tmp_path):
    task = from_file(tmp_path, "prompt: |\n  {title}\n  {body}\n  Verdict:")
    assert task.wording.template == "{title}\n{body}\nVerdict:", "a block's last line break is no part of it"
    assert task.wording.answers == ("negative", "positive")
    task = from_file(tmp_path, "answers: [bad, good]")
    assert task.wording.template.endswith("Question: What is the label: negative or positive?\nAnswer:")
    assert task.wording.answers == ("bad", "good")
    assert from_file(tmp_path, "").wording is None


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("prompt: '{titel} {body}'", "place in the prompt of task 'mine': 'titel'; did you mean 'title'"),
        ("prompt: '{title}'", "no place for column 'body'; write {body}"),
        ("prompt: '{{title}} {body}'", "no place for column 'title'"),
        ("prompt: '{title} {body} {'", "a brace that belongs to no place; write it twice"),
        ("prompt: [a, b]", "'prompt' takes one text"),
        ("answers: [a, b, c]", r"3 answers \(a, b, c\) for 2 labels \(one each for negative, positive\)"),
        ("answers: yes", r"1 answers \(yes\) for 2 labels"),
        ("answers: [a, ' a']", "answers must be different words, given 'a', 'a'"),
        ("answers: ['', a]", "answers must be different words"),
        ("anwsers: [a, b]", "'anwsers'; did you mean 'answers'"),
    ],
)
def test_a_prompt_with_a_mistake_gives_one_line_that_names_it(tmp_path, rest, said):
    with pytest.raises(UsageError, match=said) as error:
        from_file(tmp_path, rest)
    assert "\n" not in str(error.value)


def test_a_prompt_for_a_score_is_refused(tmp_path):
    for rest in ("prompt: '{title} {body}'", "answers: [a, b]"):
        with pytest.raises(UsageError, match="task 'mine' has a score"):
            from_file(tmp_path, rest, labels="")


# Tokens


@pytest.fixture(scope="module")
def stories(request):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = request.getfixturevalue("shared") / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def byte_level(before=""):
    """A tokenizer like GPT-2's, with or without a start token before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<e>"], initial_alphabet=alphabet)
    made.train_from_iterator(sentences(200, 1)[0], trainer)
    if before:
        made.post_processor = processors.TemplateProcessing(single=f"{before} $A", special_tokens=[(before, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<e>", eos_token="<e>", pad_token="<e>")


ASKED = [
    PromptedExample("the film was\nAnswer:", (" good", " bad", " not very good")),
    PromptedExample("the film was ", ("good", "bad", "dull and long")),
    PromptedExample("a\n\n", (" a", " b", " c d e")),
    PromptedExample("it was a long long long long long film and i liked it\nAnswer:", (" yes", " no", " i liked it")),
]


def pairs_of_the_harness(tokens, question):
    """Context and answer as lm-evaluation-harness splits them: move the space, tokenize the whole, cut it."""
    found = []
    for answer in question.answers:
        kept = question.context.rstrip()
        moved = question.context[len(kept) :] + answer
        context, whole = tokens.encode(kept), tokens.encode(kept + moved)
        found.append((context, whole[len(context) :]))
    return found


@pytest.mark.parametrize("kind", ["byte-level", "byte-level with a start token", "stories"])
def test_context_and_answer_are_split_as_the_harness_splits_them(kind, request):
    starts = {"byte-level": "", "byte-level with a start token": "<e>"}
    tokens = request.getfixturevalue("stories")[1] if kind == "stories" else byte_level(starts[kind])
    for question, pairs in zip(ASKED, tokenize_answers(tokens, ASKED), strict=True):
        assert pairs == pairs_of_the_harness(tokens, question)
        for (context, asked), answer in zip(pairs, question.answers, strict=True):
            whole = tokens.decode([*context, *asked], skip_special_tokens=True)
            assert whole.strip() == (question.context + answer).strip()


def test_an_empty_context_is_a_start_token():
    for before in ("", "<e>"):
        (pairs,) = tokenize_answers(byte_level(before), [PromptedExample("", ("a", " b"))])
        assert [context for context, _ in pairs] == [[0], [0]]
        assert tokenize_answers(byte_level(before), [PromptedExample(" \n", ("a", "b"))])[0][0][0] == [0]


def test_what_a_tokenizer_puts_after_a_text_is_neither_read_nor_asked_for():
    tokens = tokenizer("masked")  # [CLS] before, [SEP] after
    ((context, answer),) = tokenize_answers(tokens, [PromptedExample("the film was", (" good",))])[0]
    assert context[0] == tokens.cls_token_id
    assert tokens.sep_token_id not in context + answer
    assert tokens.decode(answer) == " good"


def test_an_answer_that_joins_the_contexts_last_token_is_tokenized_by_itself():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(vocab={"<e>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    tokens = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<e>", eos_token="<e>")
    assert tokenize_answers(tokens, [PromptedExample("a", ("b", "a"))]) == [[([1], [2]), ([1], [1])]]
    with pytest.raises(UsageError, match="no token of the answer '!'"):
        tokenize_answers(tokens, [PromptedExample("a", ("!", "a"))])


# Likelihoods


def one_by_one(net, tokens, asked, max_length):
    """Log-likelihoods in float64: one question, one label, all logits at a time."""
    net = net.double()
    found = []
    for question in asked:
        row = []
        for context, answer in pairs_of_the_harness(tokens, question):
            ids = torch.tensor([(context + answer)[-(max_length + 1) :]])
            with torch.no_grad():
                logs = net(input_ids=ids[:, :-1]).logits.log_softmax(dim=-1)[0]
            each = logs.gather(1, ids[0, 1:, None])[:, 0]
            row.append(float(each[len(each) - len(answer) :].sum()))
        found.append(row)
    net.float()
    return np.array(found)


def many(n=30):
    """Few-shot questions of many lengths; one answer is the beginning of another."""
    texts, labels = sentences(80, 5)
    task = reviews(wording=PromptTemplate("{text}\nIs it good?", ("i loved", "i loved and a fine")))
    shots = examples([texts[:40]], labels[:40], "train")
    made = [
        prompt_examples(task, examples([[text]]), shots, row % 4, row)[0] for row, text in enumerate(texts[40 : 40 + n])
    ]
    return [PromptedExample(each.context, (*each.answers, " a")) for each in made]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "stories"])
@pytest.mark.parametrize("max_length", [64, 11])
def test_label_scores_are_those_of_a_plain_loop_in_float64(kind, max_length, request, monkeypatch):
    if kind == "stories":
        net, tokens = request.getfixturevalue("stories")
    else:
        net, tokens = model(kind), tokenizer("causal")
    asked = many()
    expected = one_by_one(net, tokens, asked, max_length)
    monkeypatch.setattr(multiple_choice, "TOKENS_AT_ONCE", 5 * max_length)
    monkeypatch.setattr(multiple_choice, "QUESTIONS_AT_ONCE", 8)
    net.train()
    found = label_scores(net, tokens, asked, max_length)
    assert net.training, "the model's mode is put back"
    net.eval()
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    assert expected.std() > 1
    long = [max(len(c) + len(a) for c, a in pairs_of_the_harness(tokens, each)) > max_length + 1 for each in asked]
    assert found.truncated == sum(long)
    assert any(long) or max_length == 64


def test_the_vocabulary_is_computed_at_answers_alone_and_a_shared_context_is_read_once(monkeypatch):
    read, scored = [], []
    run, scores = multiple_choice.forward, multiple_choice.vocabulary_scores
    monkeypatch.setattr(
        multiple_choice, "forward", lambda m, i, *rest: (read.append(i["input_ids"].shape), run(m, i, *rest))[1]
    )
    monkeypatch.setattr(
        multiple_choice, "vocabulary_scores", lambda f, *rest: (scored.append(len(f)), scores(f, *rest))[1]
    )
    tokens = tokenizer("causal")
    asked = [PromptedExample("the film was", (" fine", " a", " and", " fine and a"))]
    (pairs,) = tokenize_answers(tokens, asked)
    assert [len(answer) for _, answer in pairs] == [1, 1, 1, 3]
    label_scores(model("llama"), tokens, asked, 64)
    assert read == [(1, len(pairs[3][0]) + 2)]
    assert scored == [6]


def test_an_answer_longer_than_what_is_read_is_refused():
    with pytest.raises(UsageError, match="an answer of 3 tokens is longer than the 2 that are read"):
        label_scores(model("llama"), tokenizer("causal"), [PromptedExample("it was", (" fine and a", " a"))], 2)


def test_the_likeliest_answer_is_chosen_as_a_whole_or_by_its_bytes():
    asked = [PromptedExample("c", (" no", " schön"))] * 3  # 2 and 6 bytes
    scores = np.array([[-2.0, -3.0], [-3.0, -2.0], [-1.0, -1.0]])
    whole = choose(scores, asked)
    assert whole.values.tolist() == [0, 1, 0], "the first of equals"
    assert whole.logits is scores
    assert choose(scores, asked, per="byte").values.tolist() == [1, 1, 1]
    np.testing.assert_allclose(choose(scores, asked, per="byte").logits[0], [-1.0, -0.5])
    assert choose(np.array([[-np.inf, -9.0]]), asked[:1]).values.tolist() == [1], "an answer that is never given"
    for none in ([np.nan, 0.0], [-np.inf, -np.inf]):
        with pytest.raises(NotFinite, match="1 of 1 examples have log-likelihoods that are NaN or infinite"):
            choose(np.array([none]), asked[:1])


def test_a_signature_says_whose_prompt_it_was_and_how_many_examples_were_solved():
    origin = prompt_template(GLUE["sst2"]).origin
    assert (
        multiple_choice.signature(origin)
        == "likeliest answer; prompt of lm-evaluation-harness 0.4.13; no solved examples"
    )
    plain = multiple_choice.signature(prompt_template(reviews()).origin, 5, 3, "byte")
    assert plain == "likeliest answer per byte; plain prompt; 5 solved examples drawn by seed 3"


# Against lm-evaluation-harness itself


@pytest.fixture
def harness():
    """A GLUE task of the harness' own code and files, by name, on rows from here."""
    pytest.importorskip("lm_eval", reason="compared where lm_eval is installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import lm_eval
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

    class Fed(ConfigurableTask):
        def __init__(self, name, splits):
            self.splits = splits
            super().__init__(config=load_yaml(f"{lm_eval.__path__[0]}/tasks/glue/{name}/default.yaml"))

        def download(self, *_args, **_kwargs):
            self.dataset = {split: datasets.Dataset.from_dict(columns) for split, columns in self.splits.items()}

    return Fed


def as_columns(task, given):
    columns = dict(zip(task.columns, map(list, given.texts), strict=True))
    return {**columns, "label": given.labels.tolist(), "idx": list(range(len(given)))}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WORDED)
def test_questions_are_the_harness_own_text_for_text(name, harness, shared):
    from kdalign.data.tasks import load_examples

    task = find_task(name, str(shared / "data" / "glue"))
    train = load_examples(task, "train").take(range(3))
    asked = load_examples(task, task.evaluation[0] if name != "qqp" else "train").take(range(10, 60))
    splits = {"train": as_columns(task, train), "validation": as_columns(task, asked)}
    theirs = harness(name, splits | {"validation_matched": splits["validation"]})
    solved, orders = list(theirs.training_docs()), set()
    for count in (0, 3):
        for doc, question in zip(theirs.eval_docs, prompt_examples(task, asked, train, count), strict=True):
            contexts = {}
            for order in itertools.permutations(range(count)):
                theirs.sampler.sample = lambda order=order, **_: [solved[shot] for shot in order]
                contexts[theirs.fewshot_context(doc, count)] = order
            orders.add(contexts[question.context])
            arguments = [request.args for request in theirs.construct_requests(doc, question.context)]
            assert arguments == [(question.context, answer) for answer in question.answers]
    assert len(orders) == 7, "none, and every order of three"


@pytest.mark.filterwarnings("ignore")
def test_likelihoods_are_the_harness_own(harness, shared, stories):
    from lm_eval.models.huggingface import HFLM

    from kdalign.data.tasks import load_examples

    task = find_task("sst2", str(shared / "data" / "glue"))
    asked = prompt_examples(task, load_examples(task, "validation").take(range(24)), load_examples(task, "train"), 4)
    net, tokens = stories
    theirs = HFLM(pretrained=net, tokenizer=tokens, max_length=400, batch_size=4, device="cpu")
    docs = harness("sst2", {split: as_columns(task, examples([["a"]], [0])) for split in ("train", "validation")})
    requests = [docs.construct_requests(docs.eval_docs[0], each.context) for each in asked]
    answers = theirs.loglikelihood([one for each in requests for one in each], disable_tqdm=True)
    found = label_scores(net, tokens, asked, 400)
    np.testing.assert_allclose(found.values, np.array([one for one, _ in answers]).reshape(-1, 2), atol=1e-4)
    assert 0 < found.truncated < 24

"""`kdalign eval` over the families: what is written, by which protocol, beside which baselines."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from kdalign.data.noise import TextNoise
from kdalign.data.tasks import GLUE, DataSource, Examples, LanguageTask, find_task, load_texts
from kdalign.data.tasks.generation_cases import GenerationCase, continuation_cases, copy_baseline, normalise_spacing
from kdalign.data.tasks.language import language_task
from kdalign.errors import UsageError
from kdalign.evaluation.baselines import Unigram
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.generation import describe_generation, generate, generate_batches
from kdalign.evaluation.job import EvalJob, EvalSettings
from kdalign.metrics.text import score_texts
from kdalign.models.architecture import count_parameters
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.layouts import LAYOUTS
from kdalign.observer import no_progress
from support.covering import first_only
from support.family_setting import model, tokenizer
from support.tiny import SHARED, one_line, sentences

TEXTS = tuple(sentences(12, 21)[0])
CASES = continuation_cases(Examples("validation", (TEXTS,), None))[0]


# What is written


def test_the_first_half_is_given_and_the_words_after_it_are_held_out():
    cases, alone = continuation_cases(Examples("x", (("a b c d e", "a b", "one"),), None))
    assert cases == [GenerationCase("a b c", ("d e",), 2), GenerationCase("a", ("b",), 1)]
    assert alone == 1
    (long,), _ = continuation_cases(Examples("x", (tuple([" ".join(map(str, range(400)))]),), None), "en", 64, 16)
    assert long.prompt.split() == [str(n) for n in range(200 - 64, 200)]
    assert long.references[0].split() == [str(n) for n in range(200, 216)]


def test_texts_have_one_spacing_whatever_tokenizer_wrote_them():
    ways = [
        "it 's a movie -- and do n't you forget ( it ) ... well @-@ known 1 @,@ 000 3 @.@ 5 in 1990 , 20",
        "it ' s a movie - - and don't you forget (it). . . well - known 1, 000 3. 5 in 1990, 20",
        "it's a movie--and do n ' t you forget (it)... well-known 1,000 3.5 in 1990, 20",
    ]
    assert len(set(normalise_spacing(ways))) == 1
    assert normalise_spacing(normalise_spacing(ways)) == normalise_spacing(ways)
    assert normalise_spacing(["It's 3.5 (well-known) movies, isn't it?"]) == ["It's 3.5 (well-known) movies, isn't it?"]


def test_a_continuation_is_cut_to_as_many_words_as_are_held_out():
    case = GenerationCase("the", ("a b c",), 3)
    assert case.trim("  one two , three four") == "one two, three"
    assert not case.is_complete("one two three -")  # the third may go on
    assert case.trim("one two three - four five") == "one two three-four"
    assert case.is_complete("one two three four f")
    line = GenerationCase("Q:", ("a",), stop="\n")
    assert line.trim(" an answer\nQ: more") == "an answer"
    assert (line.is_complete(" an answer"), line.is_complete(" an answer\n")) == (False, True)


@pytest.mark.parametrize("kind", first_only(["llama", "gpt2", "gpt_neox", "opt"], 2))
def test_a_causal_model_goes_on_with_its_likeliest_token_whatever_stands_beside_it(kind):
    net, reads = model(kind), tokenizer("causal")
    together, _ = generate(net, reads, CASES, GenerationSettings(), no_progress)
    for case, text in zip(CASES, together, strict=True):
        most = min(case.token_budget, 32)  # half of its positions
        ids = reads(case.prompt, add_special_tokens=False)["input_ids"][-(64 - most) :]
        start = len(ids)
        with torch.no_grad():
            while len(ids) < start + most and not case.is_complete(reads.decode(ids[start:], skip_special_tokens=True)):
                ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == reads.eos_token_id:
                    break
        assert case.trim(reads.decode(ids[start:], skip_special_tokens=True)) == text


@pytest.mark.slow
def test_a_permutation_model_goes_on_from_left_to_right_whatever_stands_beside_it():
    net, reads = model("xlnet"), tokenizer("permutation")
    together, _ = generate(net, reads, CASES, GenerationSettings(), no_progress)
    assert together == [generate(net, reads, [case], GenerationSettings(), no_progress)[0][0] for case in CASES]
    case, text = CASES[0], together[0]
    ids = reads(case.prompt, add_special_tokens=False)["input_ids"]
    start, special = len(ids), set(reads.all_special_ids) - {reads.eos_token_id}
    while len(ids) < start + case.token_budget and not case.is_complete(
        reads.decode(ids[start:], skip_special_tokens=True)
    ):
        place = torch.zeros(1, 1, len(ids) + 1)
        place[0, 0, -1] = 1
        hidden = torch.ones(1, len(ids) + 1, len(ids) + 1).triu()
        with torch.no_grad():
            logits = net(torch.tensor([[*ids, 5]]), perm_mask=hidden, target_mapping=place).logits[0, 0]
        logits[list(special)] = -math.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == reads.eos_token_id:
            break
    assert case.trim(reads.decode(ids[start:], skip_special_tokens=True)) == text


def mask_predict(net, reads, case, rounds):
    """Mask-Predict for one text, step by step."""
    whole = reads(case.full_text, add_special_tokens=False, return_offsets_mapping=True)
    prompt = [
        t for t, (_, end) in zip(whole["input_ids"], whole["offset_mapping"], strict=True) if end <= len(case.prompt)
    ]
    size = len(whole["input_ids"]) - len(prompt)
    cls, sep = reads.cls_token_id, reads.sep_token_id
    ids = [cls, *prompt, *[reads.mask_token_id] * size, sep]
    first, sure = 1 + len(prompt), [0.0] * size
    masked = list(range(size))
    for turn in range(1, rounds + 1):
        with torch.no_grad():
            logits = net(torch.tensor([ids])).logits[0]
        logits[:, reads.all_special_ids] = -math.inf
        for place in masked:
            probability, token = logits[first + place].softmax(-1).max(-1)
            ids[first + place], sure[place] = int(token), float(probability)
        masked = sorted(range(size), key=lambda place: sure[place])[: size * (rounds - turn) // rounds]
        for place in masked:
            ids[first + place] = reads.mask_token_id
    return case.trim(reads.decode(ids[first : first + size], skip_special_tokens=True))


def test_how_an_answer_was_written_says_where_it_is_ended():
    assert (
        describe_generation("seq2seq", False, GenerationSettings(new_tokens=8)) == "greedy, at most 8 new tokens a text"
    )
    assert (
        describe_generation("causal", True, GenerationSettings()) == "greedy, ends after as many words as the reference"
    )


@pytest.mark.parametrize("kind", ["bert", "albert", "modernbert", "deberta-v2"])
def test_a_masked_model_fills_the_gap_by_mask_predict(kind):
    net, reads = model(kind), tokenizer("masked")
    written, _ = generate(net, reads, CASES, GenerationSettings(rounds=4), no_progress)
    assert written == [mask_predict(net, reads, case, 4) for case in CASES]
    assert all(len(text.split()) <= case.words for text, case in zip(written, CASES, strict=True))


def test_an_encoder_decoder_answers_as_transformers_generates():
    net, reads = model("marian"), tokenizer("seq2seq")
    cases = [GenerationCase(text, ("x",)) for text in TEXTS]
    written, _ = generate(net, reads, cases, GenerationSettings(new_tokens=12), no_progress)
    for case, text in zip(cases, written, strict=True):
        found = net.generate(**reads(case.prompt, return_tensors="pt"), max_new_tokens=12, do_sample=False, num_beams=1)
        assert reads.decode(found[0], skip_special_tokens=True).strip() == text
    assert generate(net, reads, cases, GenerationSettings(beams=3, new_tokens=12), no_progress)[0] != written


def test_an_encoder_decoder_without_a_mask_does_not_continue_texts():
    reads = tokenizer("seq2seq")
    assert reads.mask_token is None
    with pytest.raises(UsageError, match="knows no mask to fill"):
        generate(model("marian"), reads, CASES, GenerationSettings(), no_progress)


def test_a_model_that_fills_masks_continues_a_text_by_what_it_puts_there():
    net = model("t5")
    reads = tokenizer("seq2seq").__class__.from_pretrained  # a copy of its own, with T5's masks
    copy = _with_sentinels(tokenizer("seq2seq"))
    assert callable(reads)
    net.resize_token_embeddings(len(copy))
    written, _ = generate(net, copy, CASES[:3], GenerationSettings(), no_progress)
    for case, text in zip(CASES[:3], written, strict=True):
        ids = copy(f"{case.prompt} <extra_id_0>", return_tensors="pt")
        said = copy.decode(
            net.generate(**ids, max_new_tokens=max(c.token_budget for c in CASES[:3]), do_sample=False)[0]
        )
        gap = said.partition("<extra_id_0>")[2].partition("<extra_id_1>")[0]
        assert case.trim(gap.replace(copy.pad_token, " ").replace(copy.eos_token, " ")) == text


def _with_sentinels(reads):
    import copy

    made = copy.deepcopy(reads)
    made.add_tokens(["<extra_id_0>", "<extra_id_1>"])
    return made


def test_the_position_that_a_permutation_model_predicts_is_seen_by_nobody():
    net = model("xlnet")
    ids = torch.tensor([[7, 8, 9, 10]])
    hidden, place = torch.ones(1, 4, 4).triu(), torch.tensor([[[0.0, 0, 0, 1]]])
    one = forward(net, {"input_ids": ids, "perm_mask": hidden, "target_mapping": place}, CaptureSpec(), None).features
    ids[0, 3] = 55
    other = forward(net, {"input_ids": ids, "perm_mask": hidden, "target_mapping": place}, CaptureSpec(), None).features
    torch.testing.assert_close(one, other, rtol=0, atol=0)


# Baselines and noise


def test_a_bad_row_of_train_that_a_baseline_reads_is_said_before_models_are_scored(kdalign, models, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/validation.csv").write_text("text\nthe film was good and warm\n")
    (tmp_path / "d/train.jsonl").write_text('{"text": "a good film"}\n{"text": \n')
    words = ("eval", models["llama"], "--task", "lm:text", "--data", "d", "--metrics", "cer", "--max-length", 32)
    status, _, err = kdalign(*words)
    assert (status, "'d/train.jsonl' is not a jsonl file: line 2" in one_line(err)) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_the_baseline_copy_says_the_last_words_again():
    assert copy_baseline(GenerationCase("a b c", ("x y",), 2)) == "b c"
    assert copy_baseline(GenerationCase("a", ("x y z",), 3)) == "a a a"
    assert copy_baseline(GenerationCase("a whole source", ("x",))) == "a whole source"


def test_the_unigram_is_a_distribution_over_all_words_by_hand():
    unigram = Unigram(["aa aa b", "aa"])  # 4 words of 2 kinds
    # Bytes: a 6, b 1, ends 4, and one each of all 257: p(a) = 7/268, p(b) = 2/268, p(end) = 5/268.
    spelled = (7 / 268) ** 2 * (5 / 268)
    assert unigram.nll("aa") == pytest.approx(-math.log((3 + 2 * spelled) / 6))
    new = (2 / 268) ** 2 * (5 / 268)
    assert unigram.nll("bb aa") == pytest.approx(-math.log(2 * new / 6) + unigram.nll("aa"))
    assert math.isfinite(unigram.nll("x" * 1000))


def test_the_unigram_draws_as_many_words_as_are_asked_for_by_their_frequency():
    unigram = Unigram(["a a a b"])
    assert unigram.write([2, 0, 3]) == unigram.write([2, 0, 3])
    assert [len(text.split()) for text in unigram.write([2, 0, 3])] == [2, 0, 3]
    (many,) = unigram.write([4000])
    assert many.split().count("a") / 4000 == pytest.approx(0.75, abs=0.03)


def test_noise_touches_the_share_of_words_that_is_asked_for_and_is_the_same_every_time():
    noise = TextNoise.parse("typos=0.2", 3)
    texts = ["plain  words here\n"] * 2000
    found = noise(texts)
    assert found == noise(texts)
    assert found != TextNoise.parse("typos=0.2", 4)(texts)
    assert all([c for c in text if c.isspace()] == [c for c in texts[0] if c.isspace()] for text in found)
    changed = [a != b for text in found for a, b in zip(text.split(), texts[0].split(), strict=True)]
    # A letter may change places with its like, or become itself: a little less than a fifth.
    assert 0.17 < np.mean(changed) < 0.2
    assert all(abs(len(a) - len(b)) <= 1 for text in found for a, b in zip(text.split(), texts[0].split(), strict=True))
    assert noise(["alone", *texts[1:]])[1] == found[1]  # a text's noise does not depend on others


def test_noise_is_in_what_is_read_alone():
    noise, settings = TextNoise.parse("typos=1"), EvalSettings()
    pairs = Examples("x", (("some source",), ("the right one",)), None)
    (case,) = (
        EvalJob(LanguageTask("t", "translation", ("a", "b"), DataSource()), pairs, settings).with_noise(noise).cases
    )
    assert case.prompt != "some source"
    assert case.references == ("the right one",)
    documents = Examples("x", (("four words of text",),), None)
    (case,) = EvalJob(LanguageTask("lm", "lm", ("a",), DataSource()), documents, settings).with_noise(noise).cases
    assert case.prompt != "four words"
    assert case.references == ("of text",)
    classes = Examples("x", (("one text",), ("another",)), np.array([1]))
    read = EvalJob(GLUE["rte"], classes, settings).with_noise(noise).examples
    assert all(a != b for a, b in zip(read.texts, classes.texts, strict=True))


@pytest.mark.parametrize("given", ["typo=0.1", "typos", "typos=x", "typos=0", "typos=2", "typos=nan"])
def test_noise_that_is_none_is_refused(given):
    with pytest.raises(UsageError):
        TextNoise.parse(given)


# The command


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame({"text": sentences(40, number)[0]}).to_parquet(place / f"{split}.parquet")
    return place


def saved(folder, kind):
    family = LAYOUTS[kind].family
    model(kind).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: saved(place / kind, kind) for kind in ("bert", "xlnet", "llama", "marian")}


def results(out):
    return {result["model"].rpartition("/")[2]: result for result in json.loads(out)}


def scores(result):
    return {score["metric"]: score for score in result["scores"]}


def test_one_command_scores_every_family_by_likelihood_and_text_beside_the_baselines(kdalign, models, texts):
    names = [models[kind] for kind in ("bert", "xlnet", "llama", "marian")]
    words = ["--task", "lm", "--data", texts, "--max-length", 32, "--metrics", "ppl,bits_per_byte,bleu,rouge,cer"]
    status, out, err = kdalign("eval", *names, *words, "--json", "--out", "all.json")
    assert status == 0, err
    found = results(out)
    assert list(found) == ["bert", "xlnet", "llama", "marian", "copy", "unigram"]
    for name in ("bert", "xlnet", "llama"):
        ours = scores(found[name])
        assert list(ours) == ["ppl", "word_ppl", "bits_per_byte", "bleu", "rougeL", "cer"]
        # All from one total: word_ppl^words = 2^(bits * bytes).
        nats = math.log(ours["word_ppl"]["value"]) * ours["word_ppl"]["n"]
        assert ours["bits_per_byte"]["value"] * math.log(2) * ours["bits_per_byte"]["n"] == pytest.approx(nats)
        assert all(score["low"] <= score["value"] <= score["high"] for score in ours.values())
        assert (ours["ppl"]["mark"] == "pseudo") is (name == "bert")
        assert ("pseudo" in ours["ppl"]["signature"]) is (name == "bert")
        kept = pd.read_parquet(found[name]["texts"])
        expected, _ = score_texts(["bleu", "cer"], kept["prediction"], [list(r) for r in kept["references"]])
        assert [score.value for score in expected] == [ours["bleu"]["value"], ours["cer"]["value"]]
        assert {"prompt", "bleu", "rougeL", "cer"} <= set(kept.columns)
    kept = pd.read_parquet(found["bert"]["texts"].replace("-texts", "-pseudo"))
    ours = scores(found["bert"])["ppl"]
    assert (len(kept), kept["tokens"].sum()) == (40, ours["n"])
    assert math.exp(kept["nll"].sum() / ours["n"]) == pytest.approx(ours["value"])
    absent = {one["metric"]: one["reason"] for one in found["marian"]["absent"]}
    assert absent["ppl"] == "a seq2seq model gives the likelihood of a target given a source"
    assert "knows no mask to fill" in absent["bleu"]
    assert set(scores(found["unigram"])) == {"word_ppl", "bits_per_byte", "bleu", "rougeL", "cer"}
    assert set(scores(found["copy"])) == {"bleu", "rougeL", "cer"}
    assert found["llama"]["parameters"] == sum(p.numel() for p in model("llama").parameters())
    status, out, _ = kdalign("compare", "all.json")
    assert status == 0
    assert "* pseudo-perplexity" in out
    assert "most 16, are held out" in " ".join(out.split())


def test_the_table_marks_pseudo_perplexities_and_says_how_texts_were_made(kdalign, models, texts):
    words = [
        "--task",
        "lm",
        "--data",
        texts,
        "--max-length",
        32,
        "--limit",
        8,
        "--metrics",
        "ppl,cer",
        "--no-baselines",
    ]
    status, out, _ = kdalign("eval", models["bert"], models["llama"], *words)
    assert status == 0
    assert "* pseudo-perplexity: not a perplexity, and not comparable with one" in out
    assert "PLL-word-l2r" in out
    plain = " ".join(out.split())
    assert "Mask-Predict, 10 rounds, given the number of the reference's tokens" in plain
    assert "copy" not in plain


def test_pairs_are_translated_and_scored_by_every_metric_and_noise_has_columns_of_its_own(kdalign, models, tmp_path):
    place = tmp_path / "pairs"
    place.mkdir()
    for number, split in enumerate(("train", "validation")):
        text = sentences(16, number)[0]
        pd.DataFrame({"en": text, "de": [" ".join(reversed(t.split())) for t in text]}).to_parquet(
            place / f"{split}.parquet"
        )
    words = ["--task", "translation:en-de", "--data", place, "--max-length", 64, "--new-tokens", 8]
    status, out, err = kdalign("eval", models["marian"], *words, "--noise", "typos=0.5", "--json")
    assert status == 0, err
    found = results(out)
    assert list(scores(found["marian"])) == ["ppl", "word_ppl", "bleu", "chrf", "bleu typos=0.5", "chrf typos=0.5"]
    assert list(scores(found["copy"])) == ["bleu", "chrf", "bleu typos=0.5", "chrf typos=0.5"]
    status, out, err = kdalign("eval", models["llama"], *words, "--metrics", "bleu", "--json")
    assert status == 0, err
    (note,) = results(out)["llama"]["notes"]
    assert "one line after the prompt 'en: ...\\nde:'" in note
    status, _, err = kdalign("eval", models["bert"], *words, "--metrics", "ppl")
    assert (status, "is a masked model" in one_line(err)) == (2, True)


@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_a_model_without_an_encoder_or_a_cache_answers_sources_after_the_task_s_prompt(kdalign, models, kind, tmp_path):
    """The texts are those that the family's own generation writes after the rendered prompt."""
    text = sentences(6, 1)[0]
    targets = [" ".join(reversed(one.split())) for one in text]
    pd.DataFrame({"en": text, "de": targets}).to_parquet(tmp_path / "validation.parquet")
    words = ["--task", "translation:en-de", "--data", tmp_path, "--max-length", 64, "--new-tokens", 4, "--json"]
    status, out, err = kdalign("eval", models[kind], *words, "--metrics", "bleu,chrf", "--no-baselines")
    assert status == 0, err
    (result,) = json.loads(out)
    kept = pd.read_parquet(result["texts"])
    assert list(kept["prompt"]) == [f"en: {source}\nde:" for source in text]
    cases = [GenerationCase(f"en: {one}\nde:", (target,), stop="\n") for one, target in zip(text, targets, strict=True)]
    reads = tokenizer(LAYOUTS[kind].family)
    expected, _ = generate(model(kind), reads, cases, GenerationSettings(new_tokens=4), no_progress)
    assert list(kept["prediction"]) == expected
    batches = generate_batches(model(kind), reads, cases, GenerationSettings(new_tokens=2))
    assert {answer.new_tokens for batch in batches for answer in batch.values()} <= {1, 2}
    (note,) = (note for note in result["notes"] if "writes" in note)
    assert "one line after the prompt 'en: ...\\nde:'" in note


def test_a_causal_model_chooses_classes_by_words(kdalign, models, data):
    words = ["--task", "sst2", "--data", data, "--limit", 12, "--max-length", 64, "--json"]
    status, out, err = kdalign("eval", models["llama"], *words, "--shots", 1)
    assert status == 0, err
    (result,) = json.loads(out)
    assert result["scores"][0]["metric"] == "accuracy"
    assert "1 solved examples drawn by seed 0" in result["notes"][0]
    kept = pd.read_parquet(result["predictions"])
    assert result["scores"][0]["value"] == pytest.approx(100 * (kept["prediction"] == kept["label"]).mean())
    status, out, _ = kdalign("eval", models["llama"], *words, "--metrics", "ppl")
    assert status == 2


def test_several_tasks_have_a_table_each(kdalign, models, texts, tmp_path):
    parent = tmp_path / "all"
    (parent / "sst2").mkdir(parents=True)
    pd.DataFrame({"sentence": sentences(6, 4)[0]}).to_parquet(parent / "sst2" / "validation.parquet")
    file = tmp_path / "mine.yaml"
    file.write_text(f"kind: language-modeling\ncolumns: text\ndata: {texts}\n")
    words = ["--task", f"lm:sst2,{file}", "--max-length", 32, "--metrics", "cer"]
    status, _, err = kdalign("eval", models["llama"], *words, "--data", parent / "gone")
    assert status == 2
    status, out, err = kdalign("eval", models["llama"], "--task", f"{file}", "--max-length", 32, "--metrics", "cer")
    assert status == 0, err
    assert "mine, validation, n = 40" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics", "blue"], "unknown metric 'blue'; did you mean 'bleu'?"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--pseudo", "words"], "unknown pseudo-likelihood 'words'; did you mean"),
        (["--stride", "64", "--max-length", "32"], "--stride 64 is longer than the windows"),
        (["--stride", "300"], "--stride 300 is longer than the windows"),
        (["--shots", "2", "--max-length", "32"], "--shots is for causal and served models on classes"),
        (["--noise", "typo=0.1"], "unknown noise 'typo'; did you mean 'typos=0.1'?"),
        (["--metrics", "masked_ppl", "--max-length", "32"], "nothing was scored"),
    ],
)
def test_a_mistake_gets_one_line_and_nothing_is_written(kdalign, models, texts, tmp_path, words, said):
    status, _, err = kdalign("eval", models["llama"], "--task", "lm", "--data", texts, *words)
    assert status == 2
    assert said in err
    assert not (tmp_path / "runs").exists()


def test_a_stride_that_no_model_takes_is_refused(kdalign, models, texts, tmp_path):
    words = ("--task", "masked-lm", "--data", texts, "--max-length", 32, "--stride", 8)
    status, _, err = kdalign("eval", models["bert"], *words)
    assert status == 2
    assert "--stride is for texts that are scored from left to right" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_language_model_whose_head_is_not_in_the_weights_is_refused(kdalign, texts, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "headless", "bert")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "cls" not in k}, folder / "model.safetensors", {"format": "pt"})
    status, _, err = kdalign("eval", folder, "--task", "lm", "--data", texts, "--metrics", "bleu", "--max-length", 32)
    assert (status, "would start at random" in err.splitlines()[-1]) == (2, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["bert", "xlnet", "llama", "marian"])
def test_bfloat16_is_near_and_says_so(kdalign, models, texts, tmp_path, kind, monkeypatch):
    frequencies = []

    def count(model):
        frequencies.extend(each.dtype for name, each in model.named_buffers() if name.endswith("inv_freq"))
        return count_parameters(model)

    monkeypatch.setattr("kdalign.evaluation.local_model.count_parameters", count)
    if kind == "marian":
        place = tmp_path / "pairs"
        place.mkdir()
        pd.DataFrame({"en": sentences(8, 1)[0], "de": sentences(8, 2)[0]}).to_parquet(place / "validation.parquet")
        words = ["--task", "translation:en-de", "--data", place, "--metrics", "ppl"]
    else:
        words = ["--task", "lm", "--data", texts, "--limit", 10, "--metrics", "ppl"]
    values = []
    for precision in ("fp32", "bf16"):
        _, out, err = kdalign("eval", models[kind], *words, "--max-length", 32, "--precision", precision, "--json")
        (score, *_) = json.loads(out)[0]["scores"]
        values.append(math.log(score["value"]))
        assert ("bf16" in score["signature"]) is (precision == "bf16"), err
    assert values[0] == pytest.approx(values[1], rel=0.05)
    assert values[0] != values[1]
    assert set(frequencies) == ({torch.float32} if kind == "llama" else set()), "as Transformers loads them"


@pytest.mark.parametrize(
    "name", ["multi30k", "wmt14", "wmt16", "xsum", "cnn_dailymail", "samsum", "dialogsum", "aeslc"]
)
def test_shipped_tasks_know_the_hubs_data_and_ask_in_words(name):
    task = find_task(name)
    assert task.source.dataset.count("/") == 1
    assert "{" not in task.render_prompt({task.columns[0]: "text"})
    assert "text" in task.render_prompt({task.columns[0]: "text"})
    assert task.text_metrics


def test_tasks_in_english_say_so_and_columns_named_by_codes_are_languages():
    english = (
        "wmt14",
        "wmt16",
        "xsum",
        "cnn_dailymail",
        "samsum",
        "dialogsum",
        "aeslc",
        "wikitext2",
        "lm:sst2",
        "masked-lm:cola",
    )
    assert {find_task(name).language for name in english} == {"en"}
    named = {
        "translation:en-de": "de", "translation:en-zh_CN": "zh", "translation:eng_Latn-zho_Hans": "zh",
        "translation:src-tgt": "",
        "translation:source-target": "", "translation:en-qq": "", "summarization:text-en": "", "lm:text": "", "lm": "",
    }  # fmt: skip
    assert {name: language_task(name).language for name in named} == named


def test_texts_without_blanks_cannot_be_continued_and_are_refused_in_one_line():
    task = LanguageTask("lm", "lm", ("text",), DataSource())
    with pytest.raises(UsageError, match="no text has two words with white space between"):
        _ = EvalJob(task, Examples("test", (("今天天气很好我们去公园散步", "word"),), None), EvalSettings()).cases


def test_a_task_files_language_is_kept_as_its_code(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("kind: translation\ncolumns: [a, b]\nlanguage: zh-Hant_TW\ndata: .\n")
    assert find_task(str(file)).language == "zh"


def test_several_references_are_all_that_a_row_holds(shared):
    task = find_task("aeslc", str(SHARED / "data"))
    examples = load_texts(task, "validation")
    assert examples.references[0][:2] == (
        "Confirmation: Risk Management Simulation Meeting 10/30/01",
        "meeting confimation - tues, 8/10",
    )
    assert len(examples.references) == len(examples) == 1960
    assert examples.take([5]).references == (("Fimat/Soc Gen", "nymex increased margins", "nymex margins increased"),)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("kind: translations\ncolumns: [a, b]", "did you mean 'translation'?"),
        ("kind: translation\ncolumns: [a]", "has two columns, its source and its target"),
        ("kind: translation\ncolumns: [a, b]\nprompt: '{b}'", "its prompt may name {a} alone"),
        ("kind: lm\ncolumns: [a]\nreferences: [b]", "are for tasks with a source and a target"),
        ("kind: lm\ncolumns: [a]\nlabels: [x, y]", "is for classes"),
        ("columns: [a]\nlanguage: de", "which name a kind"),
        ("kind: lm\ncolumns: [a]\nlanguage: german", "unknown language in task file"),
        ("kind: lm\ncolumns: [a]\nlanguage: german", "did you mean 'de'"),
    ],
)
def test_a_task_file_of_texts_that_does_not_fit_is_refused(tmp_path, lines, said):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{lines}\ndata: {tmp_path}\n")
    with pytest.raises(UsageError, match=said.replace("{", r"\{").replace("}", r"\}").replace("?", r"\?")):
        find_task(str(file))


# What a first user met


def test_a_prompt_that_leaves_no_room_is_cut_and_counted(kdalign, models, tmp_path):
    place = tmp_path / "long"
    place.mkdir()
    pd.DataFrame({"text": [" ".join(sentences(30, 5)[0])] * 2}).to_parquet(place / "validation.parquet")
    words = ["--task", "lm", "--data", place, "--metrics", "cer", "--max-length", 32, "--json"]
    for kind in ("llama", "bert"):  # both of 64 positions
        status, out, err = kdalign("eval", models[kind], *words)
        assert status == 0, err
        assert results(out)[kind]["truncated"] == 2


def test_a_task_files_own_data_is_scored_whatever_a_run_was_trained_on(kdalign, texts, tmp_path):
    words = ["--teacher", "none", "--student", "new:gpt2,layers=1,width=16,heads=2,positions=64"]
    words += ["--tokenizer", "train:300", "--task", "lm", "--data", texts]
    words += ["--max-length", 32, "--max-steps", 1, "--out", "runs/own"]
    assert kdalign("distill", *words)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    pd.DataFrame({"text": sentences(7, 9)[0]}).to_parquet(other / "validation.parquet")
    (tmp_path / "mine.yaml").write_text("kind: lm\ncolumns: text\ndata: other\n")
    status, out, err = kdalign("eval", "runs/own", "--task", "mine.yaml", "--metrics", "ppl", "--json")
    assert status == 0, err
    (result,) = json.loads(out)
    assert (result["n"], result["source"]) == (7, "other")
    status, table, _ = kdalign("eval", "runs/own", "--task", "mine.yaml", "--metrics", "ppl")
    assert "mine, validation, n = 7 of other" in table


def test_the_same_command_writes_the_same_file_with_baselines_too(kdalign, models, texts, tmp_path):
    words = [
        "eval",
        models["llama"],
        "--task",
        "lm",
        "--data",
        texts,
        "--limit",
        4,
        "--max-length",
        32,
        "--metrics",
        "cer",
    ]
    assert kdalign(*words)[0] == kdalign(*words)[0] == 0
    assert len(list((tmp_path / "runs" / "eval").glob("*.json"))) == 1


def test_rows_of_other_data_are_told_apart_in_compare(kdalign, models, texts, tmp_path):
    for n in (4, 6):
        words = ["--task", "lm", "--data", texts, "--limit", n, "--max-length", 32, "--metrics", "ppl"]
        assert kdalign("eval", models["llama"], *words, "--out", f"{n}.json")[0] == 0
    _, out, _ = kdalign("compare", "4.json", "6.json", "--format", "markdown")
    assert f"llama (validation, 4 of {texts.name})" in out
    assert f"llama (validation, 6 of {texts.name})" in out


def test_beside_others_what_a_model_cannot_do_is_a_dash(kdalign, models, tmp_path):
    place = tmp_path / "pairs"
    place.mkdir()
    pd.DataFrame({"en": sentences(4, 1)[0], "de": sentences(4, 2)[0]}).to_parquet(place / "validation.parquet")
    words = ["--task", "translation:en-de", "--data", place, "--max-length", 64, "--new-tokens", 8, "--metrics", "ppl"]
    status, out, err = kdalign("eval", models["marian"], models["bert"], *words, "--json")
    assert status == 0, err
    absent, *_ = results(out)["bert"]["absent"]
    assert absent["reason"] == "task translation-en-de is not for a masked model"


# What a reviewer broke


def test_spacing_leaves_what_is_written_as_it_is():
    for text in ("हिन्दी में", "café naïve", "don’t it’s u.s. C++ http://a.b/c <unk> x", "👩‍👩‍👧 ok"):
        assert normalise_spacing([text]) == [text]
    assert normalise_spacing(["Ça va ? Oui , merci !"], "fr") == ["Ça va ? Oui, merci !"]
    case = GenerationCase("x", ("Ça va ? Oui, merci !",), 6, language="fr")
    assert case.trim(case.references[0]) == case.references[0]


def test_even_a_byte_a_token_has_room_for_what_is_held_out():
    case = GenerationCase("x", ("extraordinarily incomprehensible characterisations",), 3)
    assert case.token_budget >= len(case.references[0].encode())


def test_noise_of_a_pair_is_drawn_for_each_text():
    pair = Examples("x", (("the cat sat on the mat",) * 9, ("the cat sat on the mat",) * 9), np.zeros(9, dtype=int))
    read = EvalJob(GLUE["mrpc"], pair, EvalSettings()).with_noise(TextNoise.parse("typos=0.5")).examples
    assert sum(a == b for a, b in zip(*read.texts, strict=True)) <= 1


def test_the_search_is_plain_whatever_a_models_settings_say():
    net, reads = model("gpt2"), tokenizer("causal")
    plain, _ = generate(net, reads, CASES, GenerationSettings(), no_progress)
    net.generation_config.update(
        repetition_penalty=3.0, no_repeat_ngram_size=1, do_sample=True, num_return_sequences=1, suppress_tokens=[7, 8],
        min_length=30, return_dict_in_generate=True, temperature=0.3, num_beams=3,
    )  # fmt: skip
    assert generate(net, reads, CASES, GenerationSettings(), no_progress)[0] == plain


def test_a_model_called_as_a_baseline_keeps_its_own_texts(kdalign, texts, tmp_path):
    saved(tmp_path / "copy", "llama")
    words = ["--task", "lm", "--data", texts, "--limit", 4, "--max-length", 32, "--metrics", "cer", "--json"]
    _, out, _ = kdalign("eval", "./copy", *words)
    ours, *baselines = json.loads(out)
    assert len({one["texts"] for one in (ours, *baselines)}) == 3
    kept = pd.read_parquet(ours["texts"])
    (score,) = ours["scores"]
    assert score_texts(["cer"], kept["prediction"], [list(r) for r in kept["references"]])[0][0].value == score["value"]


def test_a_perplexity_beyond_all_numbers_is_a_dash():
    from kdalign.evaluation.likelihood import TokenLikelihoods, token_perplexities

    rows = TokenLikelihoods(np.array([5000.0]), np.array([4]), words=1, bytes=400)
    found = {score.metric: score for score in token_perplexities(rows, "x", interval=False)}
    assert (found["ppl"].value, found["word_ppl"].value) == (None, None)
    assert found["bits_per_byte"].value == pytest.approx(5000 / 400 / math.log(2))


def test_the_other_pseudo_likelihood_is_asked_for_by_its_name(kdalign, models, tmp_path):
    place = tmp_path / "odd"
    place.mkdir()
    pd.DataFrame({"text": ["zqxj film", "unlikely words"]}).to_parquet(place / "validation.parquet")
    values = {}
    for how in ("word-l2r", "token"):
        words = ["--task", "lm", "--data", place, "--max-length", 32, "--metrics", "ppl", "--pseudo", how, "--json"]
        (score, *_) = json.loads(kdalign("eval", models["bert"], *words)[1])[0]["scores"]
        values[how] = score["value"]
    assert values["word-l2r"] != values["token"]


def test_the_mark_stands_beside_the_number_in_compare(kdalign, models, texts):
    words = ["--task", "lm", "--data", texts, "--limit", 4, "--max-length", 32, "--metrics", "word_ppl"]
    kdalign("eval", models["bert"], models["llama"], *words, "--out", "marked.json")
    _, out, _ = kdalign("compare", "marked.json", "--format", "markdown")
    rows = {line.split("|")[1].split()[0]: line for line in out.splitlines() if line.startswith("|")}
    assert "*" in rows["bert"]
    assert "*" not in rows["llama"]


def test_a_file_of_published_rows_that_cannot_be_read_is_refused_before_anything_is_scored(
    kdalign, teacher, data, tmp_path
):
    status, _, err = kdalign("eval", teacher, "--task", "sst2", "--data", data, "--reference", "gone.yaml")
    assert status == 2
    assert "gone.yaml" in one_line(err)
    assert not (tmp_path / "runs").exists()

"""The numerical contract on language models of every family: capture, cutting, splitting a step, padding, leaks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import repeat_kv

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import DataSource, Examples, LanguageTask
from kdalign.data.tokenized_split import IGNORED
from kdalign.distillation.map_layers import plan_layers
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.language_modeling import LanguageModelingAdapter
from kdalign.models import lora, student
from kdalign.models.architecture import (
    CROSS,
    Layer,
    attention_modules,
    block_paths,
    blocks,
    describe,
    layout_of,
)
from kdalign.models.capture import CaptureSpec, capture, enable_capture, forward
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import head_of_class
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import LAYOUTS
from kdalign.models.profiling import profile_models
from kdalign.objective.build import build_language_objective
from kdalign.objective.objective import Objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from support.covering import each_once
from support.family_setting import (
    ALL,
    EVERY,
    FINAL_NORM,
    ONE_OF_EACH,
    Setting,
    adapter,
    answered,
    encoded,
    model,
    tokenizer,
)
from support.tiny import sentences


def close(one, other, atol=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        largest = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, other[name], atol=atol * largest, rtol=1e-4, msg=name)


@EVERY
def test_what_is_captured_is_what_the_model_computes(kind):
    net = model(kind)
    batch = collate(encoded(kind), range(3), width=24)
    inputs = accepted_inputs(net, batch.inputs)
    layers = frozenset(blocks(net))
    with torch.no_grad():
        plain = net(**inputs, output_hidden_states=True)
        maps = frozenset(attention_modules(net))
        stacks = frozenset(layer.stack for layer in layers)
        signals = forward(enable_capture(net), inputs, CaptureSpec(layers, maps, stacks), None)
    assert torch.equal(signals.head.logits(signals.features)[answered(batch)], plain.logits[answered(batch)])
    for stack in layout_of(net.config).stacks:
        name = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states"}[stack.name]
        states = plain[name] if LAYOUTS[kind].family == "seq2seq" else plain.hidden_states
        real = answered(batch) if stack.name == "decoder" else batch.real
        first = states[0][0] if isinstance(states[0], tuple) else states[0]
        torch.testing.assert_close(signals.embeddings[stack.name][real], first[real])
        for number in range(4 - (kind in FINAL_NORM)):
            theirs = states[number + 1]
            if kind == "xlnet":  # both streams, where tokens are predicted
                theirs = theirs[0] if isinstance(theirs, tuple) else plain.hidden_states[2 * (number + 1)]
            torch.testing.assert_close(signals.hidden[Layer(stack.name, number)][real], theirs[real])


@EVERY
def test_captured_maps_are_those_of_eager_attention(kind):
    net = model(kind)
    batch = collate(encoded(kind, scored=True), range(3), width=24)
    inputs = accepted_inputs(net, batch.inputs)
    layers = frozenset(attention_modules(net))
    with torch.no_grad():
        signals = forward(enable_capture(net), inputs, CaptureSpec(attention=layers), None)
        net.set_attn_implementation("eager")
        eager = net(**inputs, output_attentions=True)
    assert signals.attention.keys() == layers
    for layer, ours in signals.attention.items():
        family = LAYOUTS[kind].family
        theirs = (eager[f"{layer.stack}_attentions"] if family == "seq2seq" else eager.attentions)[layer.number]
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # XLNet's content stream, of two
        real = batch.real if layer.stack == "encoder" else answered(batch)
        torch.testing.assert_close(ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_a_step_of_generation_is_the_whole_forwards_last(kind):
    net, ids = enable_capture(model(kind)), torch.randint(5, 50, (1, 9))
    with torch.no_grad():
        whole = net(input_ids=ids).logits[:, -1]
        past = net(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = net(input_ids=ids[:, -1:], past_key_values=past).logits[:, -1]
    torch.testing.assert_close(step, whole, atol=1e-4, rtol=1e-4)


def test_packed_documents_longer_than_the_layers_look_back_are_refused():
    net = model("gemma2")
    net.config.sliding_window = 16
    with pytest.raises(UsageError, match="--max-length 24 is more than the 16 tokens that 'x' looks back"):
        adapter("gemma2", 24).check_packing(Checkpoint("x", "x", net.config, None, ""))
    adapter("gemma2", 16).check_packing(Checkpoint("x", "x", net.config, None, ""))


OUTPUT = {"modernbert": "Wo", "gpt2": "c_proj", "gpt_neox": "dense", "opt": "out_proj", "llama": "o_proj"}
OUTPUT |= {"gemma2": "o_proj", "t5": "o", "bart": "out_proj", "marian": "out_proj", "albert": "dense"}
"""What the mixed values go into, below the attention; BERT's and DeBERTa's give them back."""


@EVERY
def test_captured_maps_queries_keys_and_values_are_those_that_the_attention_mixes(kind):
    net = enable_capture(model(kind))
    batch = collate(encoded(kind), range(3), width=24)
    modules = attention_modules(net)
    mixed, layers = {}, frozenset(modules)

    def keep(layer):
        def hook(_module, args, output):
            given = args[0] if kind in OUTPUT else output[0]
            mixed.setdefault(layer, given)

        return hook

    for layer, module in modules.items():
        place = module.get_submodule(OUTPUT[kind]) if kind in OUTPUT else module
        if kind != "albert" or layer.number == 0:  # one module is all of its layers: the first call is looked at
            place.register_forward_hook(keep(layer))
    stacks = frozenset(layer.stack for layer in blocks(net))
    with torch.no_grad(), capture(net, CaptureSpec(frozenset(), layers, stacks, layers)) as signals:
        net(**accepted_inputs(net, batch.inputs))
    assert signals.queries.keys() == signals.keys.keys() == signals.values.keys() == layers
    first, read = next(iter(modules.values())), signals.embeddings[next(iter(blocks(net))).stack]
    for name, place in {"queries": "query_proj", "keys": "key_proj", "values": "value_proj"}.items():
        kept = next(iter(vars(signals)[name].values()))
        if kind == "deberta-v2":
            torch.testing.assert_close(kept.transpose(1, 2).flatten(2), first.get_submodule(place)(read))
        if kind == "xlnet":
            by_hand = torch.einsum("bih,hnd->bnid", read, first.get_parameter(name[0]))
            torch.testing.assert_close(kept, by_hand)
    for layer, result in mixed.items():
        values = repeat_kv(signals.values[layer], 4 // signals.values[layer].size(1))
        ours = (signals.attention[layer] @ values).transpose(1, 2)  # (batch, time, heads, head width)
        if kind == "xlnet":  # what comes back is added to the content stream: the words, in the first layer
            if layer.number == 0:
                words = net.transformer.word_embedding(batch.inputs["input_ids"]).transpose(0, 1)
                again = modules[layer].post_attention(words, ours.transpose(0, 1))
                torch.testing.assert_close(again, result, atol=1e-4, rtol=1e-4)
            continue
        torch.testing.assert_close(ours.flatten(2), result, atol=1e-4, rtol=1e-4)
        if kind not in ("deberta-v2", "t5"):  # which add positions of their own to the scores
            keys = repeat_kv(signals.keys[layer], 4 // signals.keys[layer].size(1))
            scores = signals.queries[layer] @ keys.transpose(2, 3) / 8**0.5
            if kind == "gemma2":
                scores = 50 * torch.tanh(scores / 50)
            maps = signals.attention[layer]
            again = scores.masked_fill(maps == 0, -1e30).softmax(-1)
            torch.testing.assert_close(again, maps, atol=1e-5, rtol=1e-3)


@EVERY
def test_a_cut_student_is_the_teachers_layers_embeddings_and_head(kind):
    big = model(kind)
    names = [stack.name for stack in layout_of(big.config).stacks]
    small = student.copy_layers(big, {name: (1, 3) for name in names})
    theirs, ours = blocks(big), blocks(small)
    assert list(ours) == [Layer(name, number) for name in names for number in (0, 1)]
    for layer, block in ours.items():
        source = dict(theirs[Layer(layer.stack, (1, 3)[layer.number])].named_parameters())
        first = dict(theirs[Layer(layer.stack, 0)].named_parameters())
        for name, weight in block.named_parameters():
            assert torch.equal(weight, source[name] if name in source else first[name]), name
    assert torch.equal(small.get_input_embeddings().weight, big.get_input_embeddings().weight)
    whole = student.copy_layers(big, {name: range(4) for name in names}).eval()
    inputs = accepted_inputs(big, collate(encoded(kind), range(3)).inputs)
    with torch.no_grad():
        assert torch.equal(whole(**inputs).logits, big(**inputs).logits)


@ONE_OF_EACH
def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient(kind):
    setting = Setting(kind)
    rows = list(range(len(setting.data)))[:8]
    whole = micro_batches(setting.data, rows, 0, 1, None, (3, 1))
    units = count_units(whole)
    expected = setting.gradient(whole, units)
    for ranks, size in ((1, 1), (2, 2)):
        shares = [
            batch for rank in range(ranks) for batch in micro_batches(setting.data, rows, rank, ranks, size, (3, 1))
        ]
        assert {u: n for u, n in count_units(shares).items() if u not in (Unit.GROUP, Unit.TOKEN_GROUP)} == {
            u: n
            for u, n in units.items()
            if u not in (Unit.GROUP, Unit.TOKEN_GROUP)  # the groups are the micro-batches
        }
        close(setting.gradient(shares, units), expected)


@ONE_OF_EACH
def test_more_padding_changes_no_term_and_no_gradient(kind):
    setting = Setting(kind)
    rows = range(min(4, len(setting.data)))
    tight, wide = collate(setting.data, rows, draw=(3, 1)), collate(setting.data, rows, width=30, draw=(3, 1))
    units = count_units([tight])
    assert count_units([wide]) == units
    close(setting.breakdown(tight, units).parts, setting.breakdown(wide, units).parts)
    close(setting.gradient([wide], units), setting.gradient([tight], units))


@EVERY
def test_a_student_equal_to_its_teacher_has_no_loss_from_it_and_no_gradient(kind):
    weights = ALL.model_copy(update={"hard": 0.0})
    big = model(kind)
    names = [stack.name for stack in layout_of(big.config).stacks]
    twin = student.copy_layers(big, {name: range(4) for name in names})
    device = torch.device("cpu")
    teacher = ComputedTeacher(big, None, torch.float32, device)
    data = encoded(kind)
    batch = collate(data, range(min(4, len(data))))
    plan = calibrate(propose(describe(twin.config), describe(twin.config)), teacher, [batch], device)
    objective = build_language_objective(weights, plan)
    learner = Learner(twin, Projections((), 0), plan, [objective], None, False).eval()
    taught = teacher(batch, learner.wanted_of_teacher)
    view = TermInputs(learner(batch.inputs, taught), taught, batch)
    breakdown = objective(view, count_units([batch]))
    breakdown.total.backward()
    assert float(breakdown.total.detach()) == pytest.approx(0, abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None) < 1e-4


@EVERY
def test_the_hard_part_is_the_cross_entropy_that_transformers_computes(kind):
    setting = Setting(kind, Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0))
    batch = collate(setting.data, range(min(4, len(setting.data))), draw=(2, 0))
    net = setting.learner.student
    with torch.no_grad():
        logits = net(**accepted_inputs(net, batch.inputs)).logits
    expected = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), ignore_index=IGNORED)
    found = setting.breakdown(batch, count_units([batch])).parts["hard"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart", "marian", "xlnet"])
def test_no_prediction_sees_the_token_that_is_asked_for(kind):
    net, data = model(kind), encoded(kind, scored=True)
    batch = collate(data, [int(np.argmax(data.lengths))])
    asked = torch.nonzero(batch.predicted[0]).flatten().tolist()
    assert len(asked) > 3

    def features(inputs):
        with torch.no_grad():
            return forward(net, accepted_inputs(net, inputs), CaptureSpec(), None).features[0]

    plain = features(batch.inputs)
    read = "decoder_input_ids" if "decoder_input_ids" in batch.inputs else "input_ids"
    for position in asked[:-1]:
        place = position if kind == "xlnet" else position + 1  # where the answer is read
        changed = {**batch.inputs, read: batch.inputs[read].clone()}
        changed[read][0, place] = (changed[read][0, place] + 7) % 200 + 10
        again = features(changed)
        torch.testing.assert_close(again[position], plain[position], msg=f"{kind}: position {position}")
        later = [other for other in asked if other > position]
        assert any(not torch.allclose(again[other], plain[other]) for other in later), "the later ones see it"


@EVERY
def test_targets_are_the_text_itself(kind):
    data = encoded(kind, scored=True, max_length=60)
    pieces = tokenizer(LAYOUTS[kind].family)
    batch = collate(data, range(len(data)), draw=(1, 0))
    texts = sentences(8, 3)[0]
    texts = texts[::-1] if LAYOUTS[kind].family == "seq2seq" else texts
    for row, text in enumerate(texts):
        targets = batch.targets[row][batch.targets[row] != IGNORED].tolist()
        content = pieces(text, add_special_tokens=False).input_ids
        match LAYOUTS[kind].family:
            case "causal":
                assert targets == content
            case "permutation":
                assert targets == content[1:]
            case "seq2seq":
                assert targets == [*content, pieces.eos_token_id]
            case _:
                places = torch.nonzero(batch.targets[row] != IGNORED).flatten().tolist()
                assert [[pieces.cls_token_id, *content][place] for place in places] == targets
                assert len(targets) == max(1, round(0.15 * len(content)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_packed_documents_do_not_see_each_other_and_begin_at_position_zero(kind):
    pieces, net = tokenizer("causal"), model(kind)
    first, second = "the film was good", "we loved the plot and the acting"
    together = adapter(kind).tokenize(
        Examples("train", ((first, second),), None), InputReader(pieces, net.config), scored=False
    )
    alone = adapter(kind).tokenize(Examples("train", ((second,),), None), InputReader(pieces, net.config), scored=False)

    def features(data):
        batch = collate(data, [0])
        with torch.no_grad():
            return forward(net, accepted_inputs(net, batch.inputs), CaptureSpec(), None).features[0], batch

    (both, packed), (single, one) = features(together), features(alone)
    start = len(pieces(first).input_ids) + 1
    length = min(len(single), 24 - start)
    torch.testing.assert_close(both[start : start + length], single[:length])
    assert packed.inputs["position_ids"][0, start : start + length].tolist() == list(range(length))
    assert packed.targets[0, start - 1] == pieces.eos_token_id
    assert packed.targets[0, start : start + length].tolist() == one.targets[0, :length].tolist()


def test_a_rows_mask_depends_on_seed_epoch_and_row_alone():
    data = encoded("bert")
    alone = collate(data, [5], draw=(4, 2))
    among = collate(data, [2, 5, 7], draw=(4, 2))
    length = len(data.columns["input_ids"][5])
    assert torch.equal(alone.targets[0, :length], among.targets[1, :length])
    assert torch.equal(alone.inputs["input_ids"][0, :length], among.inputs["input_ids"][1, :length])
    others = [collate(data, [5], draw=draw).targets[0, :length] for draw in ((4, 3), (5, 2))]
    assert any(not torch.equal(other, alone.targets[0, :length]) for other in others)


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_attention_to_the_encoder_is_the_weighted_mean_of_its_layers_distances(kind):
    setting = Setting(kind, Weights(hard=0, alpha=0, beta=0, gamma=0, delta=1))
    batch = collate(setting.data, range(4))
    wanted = setting.learner.wanted_of_teacher
    with torch.no_grad():
        taught = setting.teacher(batch, wanted)
        theirs, ours = taught.attention, setting.learner(batch.inputs, taught).attention
        found = setting.breakdown(batch, count_units([batch])).parts["attention cross"]
    expected = 0.0
    for own, of in ((0, 1), (1, 3)):
        each = (ours[Layer(CROSS, own)] - theirs[Layer(CROSS, of)]).square().sum(-1).mean(1)
        expected += float(each[batch.predicted].mean()) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert 0 < found < 2


def test_a_permutation_model_is_trained_in_drawn_orders_or_from_left_to_right():
    texts = Examples("train", (tuple(sentences(8, 3)[0]),), None)
    task, config = LanguageTask("lm", "lm", ("a", "b"), DataSource()), model("xlnet").config

    def orders(asked):
        data = LanguageModelingAdapter(task, "permutation", 24, asked).tokenize(
            texts, InputReader(tokenizer("permutation"), config), scored=False
        )
        columns = {name: column[0] for name, column in data.columns.items()}
        return [data.corrupt(columns, np.random.default_rng(seed))["order"] for seed in range(3)]

    drawn, straight = orders("drawn"), orders("left-to-right")
    assert drawn[0] != drawn[1]
    scored = LanguageModelingAdapter(task, "permutation", 24).tokenize(
        texts, InputReader(tokenizer("permutation"), config), scored=True
    )
    assert np.argsort(scored.columns["order"][0]).tolist() == np.argsort(straight[0]).tolist()
    assert straight[0] == straight[1] == sorted(straight[0])


def test_an_adapter_adds_twice_the_product_of_its_matrices():
    net = model("gpt2", layers=1)
    before = net.transformer.h[0].mlp.c_fc.weight.clone()
    lora.add_adapters(net, 3, 0)
    adapter = net.transformer.h[0].mlp.c_fc
    with torch.no_grad():
        adapter.lora_B["default"].weight.normal_()
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    assert a.shape == (3, 32)
    expected = before + 2 * (b @ a).T  # GPT-2 keeps its weights turned
    torch.testing.assert_close(lora.merge_adapters(net).transformer.h[0].mlp.c_fc.weight, expected)


@ONE_OF_EACH
def test_adapters_alone_learn_in_the_layers_and_merged_they_answer_as_before(kind):
    setting = Setting(kind)
    small = setting.learner.student
    before = {name: value.clone() for name, value in small.state_dict().items()}
    lora.add_adapters(small, 2, 0)
    trained = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name for name in trained if name.startswith(tuple(block_paths(small).values())))
    assert not small.get_input_embeddings().weight.requires_grad
    batch = collate(setting.data, range(3))
    learnt = [parameter for parameter in small.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=0.5)
    for _ in range(2):  # in the first step only B moves, which starts at 0
        optimizer.zero_grad()
        setting.breakdown(batch, count_units([batch])).total.backward()
        optimizer.step()
    inputs = accepted_inputs(small, batch.inputs)
    with torch.no_grad():
        expected = small(**inputs).logits
        stock = lora.merge_adapters(small)
        torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-3, rtol=1e-3)
    after = stock.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(name.startswith(tuple(block_paths(stock).values())) for name in changed)
    weight = stock.get_input_embeddings().weight
    name = next(name for name, parameter in stock.named_parameters() if parameter is weight)
    assert torch.equal(weight, before[name])


@ONE_OF_EACH
def test_in_bfloat16_a_step_goes_where_it_goes_in_float32(kind):
    exact, rounded = Setting(kind), Setting(kind, bf16=True)
    batch = collate(exact.data, range(min(4, len(exact.data))))
    one, other = (setting.gradient([batch], count_units([batch])) for setting in (exact, rounded))
    assert one.keys() == other.keys()
    flat = [torch.cat([gradient[name].flatten() for name in one]) for gradient in (one, other)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.95


@pytest.mark.parametrize(("kind", "part"), each_once(["gpt2", "bert", "bart"], ["hard", "alpha", "beta", "gamma"]))
def test_each_part_alone_falls_below_a_tenth_of_its_start_on_one_batch(kind, part):
    alone = {name: float(name == part) for name in ("hard", "alpha", "beta", "gamma", "delta")}
    setting = Setting(kind, Weights(**alone))
    batch = collate(setting.data, range(min(4, len(setting.data))))
    units = count_units([batch])
    optimizer = torch.optim.AdamW(setting.learner.parameters(), lr=3e-3, weight_decay=0)
    start = value = float(setting.breakdown(batch, units).total.detach())
    for _ in range(400):
        optimizer.zero_grad()
        total = setting.breakdown(batch, units).total
        total.backward()
        optimizer.step()
        value = float(total.detach())
        if value < start / 10:
            break
    assert value < start / 10


def test_a_checkpoints_head_is_read_from_its_class():
    heads = {"BertForMaskedLM": "masked", "GPT2LMHeadModel": "causal", "XLNetLMHeadModel": "causal",
             "T5ForConditionalGeneration": "seq2seq", "MarianMTModel": "seq2seq", "ElectraForPreTraining": "",
             "BertModel": "", "BertForSequenceClassification": "classifier"}  # fmt: skip
    assert {name: str(head_of_class(name)) for name in heads} == heads


def test_an_objective_without_parts_of_the_vocabulary_has_none():
    objective = build_language_objective(Weights(hard=0, alpha=0, beta=1), None)
    assert objective == Objective({}, None)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bart", "marian"])
def test_features_are_compared_where_tokens_are_real_and_nowhere_else(kind):
    setting = Setting(kind)
    batch = collate(setting.data, range(min(4, len(setting.data))), width=24)
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    learnt = setting.learner(batch.inputs, taught)
    parts = setting.objective(TermInputs(learnt, taught, batch), count_units([batch])).parts
    for stack in layout_of(setting.learner.student.config).stacks:
        real = batch.predicted if kind != "gpt2" and stack.name == "decoder" else batch.real
        distances = [
            1 - F.cosine_similarity(learnt.hidden[ours][row, place], taught.hidden[theirs][row, place], dim=0)
            for ours, theirs in (
                (Layer(stack.name, 0), Layer(stack.name, 1)),
                (Layer(stack.name, 1), Layer(stack.name, 3)),
            )
            for row, place in torch.nonzero(real).tolist()
        ]
        name = "cosine" if kind == "gpt2" else f"cosine {stack.name}"
        assert float(parts[name]) == pytest.approx(float(torch.stack(distances).mean().detach()), rel=1e-4)


@ONE_OF_EACH
def test_a_configuration_alone_tells_costs_and_a_plan(kind, tmp_path):
    config = model(kind).config
    config.save_pretrained(tmp_path)
    [found] = profile_models([str(tmp_path)], (16,), weights=False)
    assert (found.megabytes, found.parameters) == (None, describe(config).parameters)
    plan = plan_layers(str(tmp_path), "layers=half", "uniform", "first")
    assert [stack.layers for stack in plan.student.stacks] == [2] * len(plan.teacher.stacks)


@EVERY
def test_a_dropout_that_is_set_holds_in_every_part_of_a_family(kind):
    net = student.with_dropout(model(kind), 0.0).train()
    ids = torch.arange(5, 25).reshape(2, 10)
    inputs = accepted_inputs(net, {"input_ids": ids, "decoder_input_ids": ids})
    with torch.no_grad():
        assert torch.equal(net(**inputs).logits, net(**inputs).logits)
        student.with_dropout(net, 0.5)
        assert not torch.equal(net(**inputs).logits, net(**inputs).logits)
        student.with_dropout(net, 0.0)
        assert torch.equal(net(**inputs).logits, net(**inputs).logits)

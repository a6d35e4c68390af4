"""A narrower student made of its teacher's weights: what is kept exactly, what nearly, and what is refused."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdalign.errors import UsageError
from kdalign.models.architecture import attention_of, describe, layout_of
from kdalign.models.heads import HeadKind, auto_class
from kdalign.models.pruning import METHODS, prune_width
from kdalign.models.pruning_layouts import FAMILIES
from kdalign.models.pruning_sizes import WidthSpec, prune_config
from support.covering import each_once, one_of_each
from support.pruning_setting import GEMMAS, LLAMAS, WIDTH, config_of

EVERY = pytest.mark.parametrize("kind", FAMILIES)
SOME = pytest.mark.parametrize("kind", one_of_each(FAMILIES, ("bert", "llama", "gemma2")))


def model(kind, head=None, seed=0, **changes):
    """A tiny model whose norms and biases are no longer ones and zeros."""
    head = head or (HeadKind.CAUSAL if kind in LLAMAS else HeadKind.MASKED)
    torch.manual_seed(seed)
    config = config_of(kind, **changes)
    made = auto_class(head, config.model_type).from_config(config, attn_implementation=attention_of(config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def texts(n=4, length=20, padding=0, seed=3):
    """Batches of random ids, some texts shorter than others; what stands under the padding is noise."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n):
        ids = torch.randint(2, 60, (6, length), generator=generator)
        real = torch.arange(length) < torch.randint(5, length + 1, (6, 1), generator=generator)
        noise = torch.randint(2, 60, (6, padding))
        mask = F.pad(real.long(), (0, padding))
        batches.append({"input_ids": torch.cat([ids, noise], 1), "attention_mask": mask})
    return batches


def logits(net, seed=9):
    """A model's answers at real tokens of texts that no student was made with."""
    with torch.no_grad():
        answers = [(net.eval()(**batch).logits, batch["attention_mask"].bool()) for batch in texts(2, seed=seed)]
    return torch.cat([found[real] if found.ndim == 3 else found for found, real in answers])


def near(one, other, within=1e-4):
    torch.testing.assert_close(one, other, atol=within * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize(("kind", "head"), each_once(FAMILIES, ["tokens", "classes"]))
def test_a_student_as_wide_as_its_teacher_answers_bit_for_bit_the_same(kind, head):
    teacher = model(kind, HeadKind.CLASSIFIER if head == "classes" else None)
    sizes = describe(teacher.config).stacks[0]
    same = WidthSpec(sizes.width, sizes.heads, sizes.kv_heads, sizes.feed_forward)
    for wanted in (WidthSpec(), same):
        assert torch.equal(logits(prune_width(teacher, wanted, "pca", texts())), logits(teacher))


@pytest.mark.parametrize(
    ("kind", "by"), [*((kind, "pca") for kind in FAMILIES), *(("bert", by) for by in METHODS[1:]), ("gemma2", "svd")]
)
def test_every_size_is_narrowed_and_the_checkpoint_loads_with_stock_classes(kind, by, tmp_path):
    teacher = model(kind, HeadKind.CLASSIFIER)
    heads = {"heads": 2, "kv_heads": 1} if kind in LLAMAS else {}
    made = prune_width(teacher, WidthSpec(16, feed_forward=20, **heads), by, texts())
    made.save_pretrained(tmp_path)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    (stack,) = describe(loaded.config).stacks
    assert (stack.width, stack.heads, stack.feed_forward, stack.head_width) == (16, 2, 20, 8)
    assert stack.kv_heads == heads.get("kv_heads", 2)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(made))
    assert bool(logits(made).isfinite().all())


@SOME
def test_a_narrower_language_models_vocabulary_stays_tied(kind):
    made = prune_width(model(kind, tie_word_embeddings=True), WidthSpec(width=16), "pca", texts())
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert bool(logits(made).isfinite().all())


def directions(seed=5):
    return torch.linalg.qr(torch.randn(WIDTH, 16, generator=torch.Generator().manual_seed(seed)))[0]


def write_into(teacher, onto):
    """Let all that is written into a Llama's residual stream lie in the span of these directions."""
    with torch.no_grad():
        words = teacher.get_input_embeddings().weight
        words.copy_(words @ onto @ onto.T)
        for layer in teacher.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(onto @ onto.T @ linear.weight)
    return teacher


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_main_directions_lose_nothing_of_a_stream_that_lies_in_them(kind):
    teacher = write_into(model(kind, tie_word_embeddings=False), directions())
    near(logits(prune_width(teacher, WidthSpec(width=16), "pca", texts())), logits(teacher))
    assert not torch.allclose(
        logits(prune_width(teacher, WidthSpec(width=12), "pca", texts())), logits(teacher), atol=0.05
    )


@pytest.mark.parametrize("kind", GEMMAS)
def test_scaled_words_and_norms_behind_layers_lose_nothing_either(kind):
    teacher = write_into(model(kind, tie_word_embeddings=True), directions())
    with torch.no_grad():  # gains that differ by channel would lead out of the span
        for name, parameter in teacher.named_parameters():
            if name.endswith(
                ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight", "model.norm.weight")
            ):
                parameter.fill_(0.3)
    near(logits(prune_width(teacher, WidthSpec(width=16), "pca", texts())), logits(teacher))


@pytest.mark.parametrize("by", ["importance", "pca"])
@pytest.mark.parametrize("tied", [False, True])
def test_channels_that_carry_nothing_can_be_dropped(by, tied):
    channels = torch.randperm(WIDTH)[:16]
    teacher = write_into(model("llama", tie_word_embeddings=tied), torch.eye(WIDTH)[:, channels])
    made = prune_width(teacher, WidthSpec(width=16), by, texts())
    if not tied or by == "importance":  # turned, a gain before a tied vocabulary is only fitted
        near(logits(made), logits(teacher))


def test_heads_that_add_nothing_can_be_dropped_and_the_stream_stays_as_it_is():
    teacher = model("llama", kv_heads=4)
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, 8:24] = 0
    made = prune_width(teacher, WidthSpec(heads=2), "pca", texts())
    assert made.config.num_key_value_heads == 2
    near(logits(made), logits(teacher))
    assert torch.equal(made.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
    assert torch.equal(
        made.model.layers[0].self_attn.q_proj.weight[:8], teacher.model.layers[0].self_attn.q_proj.weight[:8]
    )


def test_of_heads_that_share_keys_and_values_as_many_are_kept_of_each():
    teacher = model("qwen3")
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, :8] = 0  # the first head of the first pair, the last of the second
            layer.self_attn.o_proj.weight[:, 24:] = 0
    made = prune_width(teacher, WidthSpec(heads=2), "pca", texts())
    assert made.config.num_key_value_heads == 2
    near(logits(made), logits(teacher))
    with torch.no_grad():  # now both of the first pair add more than any of the second
        for layer in teacher.model.layers:
            layer.self_attn.o_proj.weight[:, 8:16] *= 10
            layer.self_attn.o_proj.weight[:, :8] = layer.self_attn.o_proj.weight[:, 8:16]
    made = prune_width(teacher, WidthSpec(heads=2), "pca", texts())
    for ours, theirs in zip(made.model.layers, teacher.model.layers, strict=True):
        assert torch.equal(ours.self_attn.q_proj.weight[8:], theirs.self_attn.q_proj.weight[16:24])


@pytest.mark.parametrize("kind", LLAMAS)
def test_the_mean_of_equal_keys_and_values_is_exact(kind):
    teacher = model(kind)
    with torch.no_grad():
        for layer in teacher.model.layers:
            for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                for parameter in linear.parameters():
                    parameter[8:] = parameter[:8]
    made = prune_width(teacher, WidthSpec(kv_heads=1), "pca", texts())
    near(logits(made), logits(teacher), within=1e-5)


@SOME
def test_neurons_that_never_fire_can_be_dropped(kind):
    teacher = model(kind)
    dead = torch.randperm(48)[:28]
    inner = {"distilbert": "lin1"} | dict.fromkeys(LLAMAS, "up_proj")
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if f".{inner.get(kind, 'intermediate.dense')}." in name:
                parameter[dead] = 0
    near(logits(prune_width(teacher, WidthSpec(feed_forward=20), "pca", texts())), logits(teacher))


def test_what_dropped_neurons_give_on_average_stays_in_the_bias():
    teacher = model("bert")
    made, found = prune_width(teacher, WidthSpec(feed_forward=20), "pca", texts()).eval(), []
    for net in (teacher, made):
        kept = []
        net.bert.encoder.layer[0].output.dense.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out))
        with torch.no_grad():
            for batch in texts():
                net(**batch)
        real = torch.cat([batch["attention_mask"].bool() for batch in texts()])
        found.append(torch.cat(kept)[real])
    near(found[1].mean(dim=0), found[0].mean(dim=0))
    assert not torch.allclose(found[1], found[0], atol=0.1)


@pytest.mark.parametrize(("kind", "by"), each_once(["bert", "llama", "gemma2"], ["pca", "importance"]))
def test_padding_changes_nothing(kind, by):
    wanted = WidthSpec(width=16, heads=2, feed_forward=20)
    one, other = (prune_width(model(kind), wanted, by, texts(padding=padding)).state_dict() for padding in (0, 7))
    for name, value in one.items():
        near(value, other[name])


def test_embeddings_that_are_narrower_than_the_stream_stay():
    teacher = model("electra", embedding_size=16)
    made = prune_width(teacher, WidthSpec(width=24), "pca", texts())
    assert torch.equal(
        made.electra.embeddings.word_embeddings.weight, teacher.electra.embeddings.word_embeddings.weight
    )
    assert made.electra.embeddings_project.weight.shape == (24, 16)
    with pytest.raises(UsageError, match="by=svd with embeddings narrower than the layers"):
        prune_width(teacher, WidthSpec(width=24), "svd", texts())
    with pytest.raises(UsageError, match="width=16 loses electra's map"):
        prune_config(teacher.config, WidthSpec(width=16))


def test_chance_goes_by_the_seed_alone():
    teacher, wanted = model("bert"), WidthSpec(width=16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (prune_width(teacher, wanted, "random", (), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'pca'"):
        prune_width(model("bert"), WidthSpec(width=16), "pcaa", ())


def test_every_family_is_one_that_kdalign_reads():
    assert {layout_of(config_of(kind)).family for kind in FAMILIES} == {"masked", "causal"}


@pytest.mark.slow
def test_of_a_real_models_half_width_main_directions_keep_most_answers_and_channels_do_not(shared):
    import pandas as pd

    path = shared / "models" / "minilm-l6-sst2"
    teacher = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    read = pd.read_parquet(shared / "data" / "glue" / "sst2" / "validation.parquet")["sentence"].tolist()
    batches = [
        dict(tokenizer(read[at : at + 32], padding=True, truncation=True, max_length=32, return_tensors="pt"))
        for at in range(0, 224, 32)
    ]
    answers = {}
    for by in ("", "pca", "importance", "random"):
        net = prune_width(teacher, WidthSpec(width=192), by, batches[:2]) if by else teacher
        with torch.no_grad():
            answers[by] = torch.cat([net.eval()(**batch).logits.argmax(dim=-1) for batch in batches[2:]])
    agreement = {by: float((found == answers[""]).float().mean()) for by, found in answers.items()}
    assert agreement["pca"] > 0.8
    assert max(agreement["importance"], agreement["random"]) < 0.65

"""Pairs by two tokenizers for encoder-decoders: which positions of sources and targets are matched."""

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.dual_pairs import tokenize_pairs_dual
from kdalign.data.tasks import Examples
from kdalign.data.tokenization import tokenize_pairs
from kdalign.data.tokenized_split import TEACHER
from kdalign.models.architecture import CROSS, Layer
from kdalign.models.capture import Activations
from support.dual_setting import HARD_TEXTS, byte_fallback, byte_level, unigram
from support.family_setting import tokenizer as trained
from support.tiny import sentences

PAIRS = Examples("train", (tuple(sentences(6, 1)[0]), tuple(sentences(6, 2)[0])), None)
SIDES = {
    "BART and Llama": (byte_level, byte_fallback),
    "Llama and BART": (byte_fallback, byte_level),
    "T5 and BART": (lambda: trained("seq2seq"), byte_level),
}


@pytest.mark.parametrize("kind", SIDES)
def test_a_decoders_positions_are_matched_where_both_have_read_the_same_of_the_target(kind):
    sides = tuple(made() for made in SIDES[kind])
    encoded = tokenize_pairs_dual(PAIRS, sides, (3, 4), 40)
    batch = collate(encoded, range(6))
    assert encoded.covered[0] == encoded.covered[1]
    for row, text in enumerate(PAIRS.texts[1]):
        ids = [encoded.columns[prefix + "decoder_input_ids"][row] for prefix in ("", TEACHER)]
        answers = batch.matching.output.answers[row].tolist()
        pairs = [(here, there) for here, there in enumerate(answers) if there >= 0 and batch.predicted[row, here]]
        first = pairs[0]
        read = [
            tuple(
                "".join(side.decode(tokens[begin + 1 : place + 1]).split())
                for side, tokens, begin, place in zip(sides, ids, first, pair, strict=True)
            )
            for pair in pairs
        ]
        assert all(ours == theirs for ours, theirs in read)
        assert [ours for ours, _ in read][:: len(read) - 1] == ["", text.replace(" ", "")]
        assert encoded.columns["targets"][row][pairs[-1][0]] == sides[0].eos_token_id
    assert encoded.ends == tuple(side.eos_token_id for side in sides)


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("max_length", [40, 6])
def test_each_side_reads_what_it_reads_alone(kind, max_length):
    hard = Examples("train", (HARD_TEXTS, HARD_TEXTS[::-1]), None)
    sides = tuple(made() for made in SIDES[kind])
    both = tokenize_pairs_dual(hard, sides, (3, 4), max_length)
    for prefix, side, start in zip(("", TEACHER), sides, (3, 4), strict=True):
        alone = tokenize_pairs(hard, side, start, max_length)
        assert both.columns[prefix + "input_ids"] == alone.columns["input_ids"]
        assert both.columns[prefix + "decoder_input_ids"] == alone.columns["decoder_input_ids"]
    assert both.columns["targets"] == tokenize_pairs(hard, sides[0], 3, max_length).columns["targets"]
    lengths = [
        [len(row) for row in both.columns[name]] for name in ("decoder start", "decoder end", "decoder_input_ids")
    ]
    assert lengths[0] == lengths[1] == lengths[2]
    assert [len(row) for row in both.columns["start"]] == both.lengths.tolist()


@pytest.mark.parametrize("made", [byte_level, byte_fallback, unigram])
def test_one_tokenizer_on_both_sides_matches_each_position_with_itself(made):
    side = made()
    side = side if side.eos_token_id is not None else byte_level()
    batch = collate(tokenize_pairs_dual(PAIRS, (side, side), (2, 2), 40), range(6))
    for row in range(6):
        places = batch.predicted[row].nonzero().squeeze(1)
        answers = batch.matching.output.answers[row][places]
        matched = answers >= 0
        assert torch.equal(answers[matched], places[matched])
        assert matched.sum() >= len(places) - 1  # of a beginning of two tokens, the first has no counterpart
        real = batch.real[row].nonzero().squeeze(1)
        torch.testing.assert_close(batch.matching.shares[row][real][:, real], torch.eye(len(real)))


def test_activations_of_each_stack_move_by_its_own_alignment():
    batch = collate(tokenize_pairs_dual(PAIRS, (byte_level(), byte_fallback()), (2, 2), 40), range(6))
    encoder, decoder = Layer("encoder", 0), Layer("decoder", 0)
    sources, targets = (batch.other_inputs[name].shape[1] for name in ("input_ids", "decoder_input_ids"))
    assert sources != targets
    hidden = {encoder: torch.randn(6, sources, 3), decoder: torch.randn(6, targets, 3)}
    maps = {encoder: torch.rand(6, 2, sources, sources), Layer(CROSS, 0): torch.rand(6, 2, targets, sources)}
    moved = Activations(hidden=hidden, attention=maps).moved(batch.matching)
    torch.testing.assert_close(moved.hidden[encoder], batch.matching.align_features(hidden[encoder]))
    torch.testing.assert_close(moved.hidden[decoder], batch.matching.decoder.align_features(hidden[decoder]))
    across = batch.matching.decoder.align_maps(maps[Layer(CROSS, 0)], batch.matching)
    torch.testing.assert_close(moved.attention[Layer(CROSS, 0)], across)


def test_attention_to_the_encoder_moves_by_both_alignments():
    batch = collate(tokenize_pairs_dual(PAIRS, (byte_level(), byte_fallback()), (2, 2), 40), range(6))
    queries, keys = batch.matching.output, batch.matching
    shape = batch.other_inputs["decoder_input_ids"].shape[1], batch.other_inputs["input_ids"].shape[1]
    maps = torch.softmax(torch.randn(6, 2, *shape), dim=-1) * batch.other_inputs["attention_mask"][:, None, None]
    moved = queries.align_maps(maps / maps.sum(dim=-1, keepdim=True), keys)
    assert moved.shape[2:] == (batch.inputs["decoder_input_ids"].shape[1], batch.inputs["input_ids"].shape[1])
    sums = moved.sum(dim=-1)[:, 0]
    torch.testing.assert_close(sums[queries.compared], torch.ones(int(queries.compared.sum())))
    assert not sums[~queries.compared].any()

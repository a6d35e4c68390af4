"""Seeded faults: each of the field's classic mistakes, put in on purpose, must fail a named test of the contract."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MUTANTS = {
    "T^2 missing": (
        "objective/losses/logits.py",
        "return temperature**2 * torch.where",
        "return torch.where",
        "objective/losses/test_losses.py::test_soft_target_kl_by_hand_at_temperature_one_and_two",
    ),
    "T not used for the student": (
        "objective/losses/logits.py",
        "F.log_softmax(to_float32(student) / temperature, dim=-1)",
        "F.log_softmax(to_float32(student), dim=-1)",
        "objective/losses/test_losses.py::test_divergence_and_its_gradient_are_zero_at_teacher_equal_student",
    ),
    "cross-entropy called KL": (
        "objective/losses/logits.py",
        'F.kl_div(student_log, teacher_log, reduction="none", log_target=True)',
        "(-teacher_log.exp() * student_log)",
        "contract/test_numerics.py::test_a_student_equal_to_its_teacher_has_no_alignment_loss_and_no_gradient_from_it",
    ),
    "mean per micro-batch": (
        "objective/losses/features.py",
        "    return torch.where(mask, each, 0).sum()",
        "    return torch.where(mask, each, 0).mean()",
        "contract/test_numerics.py::test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient",
    ),
    "padding counted in features": (
        "objective/terms/base.py",
        "else batch.patches if self.reads_image else batch.compared",
        "else batch.patches if self.reads_image else batch.compared | True",
        "contract/test_numerics.py::test_more_padding_changes_no_term_and_no_gradient",
    ),
    "padding counted in units": (
        "objective/units.py",
        "int(batch.tokens.sum()) for batch",
        "batch.tokens.numel() for batch",
        "contract/test_numerics.py::test_the_mask_counts_each_real_token_and_no_padding",
    ),
    "user's words asked for": (
        "data/tasks/conversations.py",
        'if number and message["role"] == "assistant"',
        "if number",
        "end_to_end/test_chat.py::test_only_what_the_assistant_says_is_asked_for_with_its_ends_one_position_ahead",
    ),
    "conversations off by one": (
        "data/conversations.py",
        "return [(ids[:-1], asked[1:]) for ids, asked in rows]",
        "return [(ids[:-1], asked[:-1]) for ids, asked in rows]",
        "end_to_end/test_chat.py::test_only_what_the_assistant_says_is_asked_for_with_its_ends_one_position_ahead",
    ),
    "end token masked": (
        "data/conversations.py",
        "[*[IGNORED] * (len(row.prompt) - 1), *row.answer]",
        "[*[IGNORED] * (len(row.prompt) - 1), *row.answer[:-1], IGNORED]",
        "data/test_conversations.py::test_the_target_and_its_end_alone_are_predicted_one_position_ahead",
    ),
    "end token masked in chats": (
        "data/conversations.py",
        "(len(row.prompt) - len(before)), *row.answer]",
        "(len(row.prompt) - len(before)), *row.answer[:-1], IGNORED]",
        "data/test_conversations.py::test_each_answer_and_its_end_are_learnt_and_nothing_else",
    ),
    "thinking of the template learnt": (
        "data/chat_templates.py",
        "return prompt + block[0], lead[block.end() :], rest",
        "return prompt, lead, rest",
        "data/test_conversations.py::test_each_answer_and_its_end_are_learnt_and_nothing_else",
    ),
    "answers that share a row forgotten": (
        "data/conversations.py",
        "before = rows.pop()[1]",
        "before = [IGNORED] * len(rows.pop()[1])",
        "data/test_conversations.py::test_answers_in_one_row_have_the_loss_of_answers_in_rows_of_their_own",
    ),
    "answers matched one token late": (
        "data/dual_answers.py",
        "spans[len(tokens.prompt) + first - 1] = (base, base + 1)",
        "spans[len(tokens.prompt) + first] = (base, base + 1)",
        "data/test_dual_answers.py::test_positions_are_matched_where_both_models_have_read_the_same_of_an_answer",
    ),
    "decoder matched by the encoder's positions": (
        "models/capture.py",
        "queries.align_maps(maps, keys=matching if layer.stack == CROSS else queries)",
        "queries.align_maps(maps, keys=queries)",
        "data/test_dual_pairs.py::test_activations_of_each_stack_move_by_its_own_alignment",
    ),
    "target matched by the token that is predicted": (
        "data/dual_pairs.py",
        "spans = [_NOWHERE, *shifted]",
        "spans = [*shifted, _NOWHERE]",
        "data/test_dual_pairs.py::test_a_decoders_positions_are_matched_where_both_have_read_the_same_of_the_target",
    ),
    "ends of two templates not matched": (
        "data/token_matching.py",
        "torch.cat([self.teacher[kept], torch.tensor([teacher])])[order]",
        "torch.cat([self.teacher[kept], torch.tensor([0])])[order]",
        "data/test_dual_answers.py::test_ends_of_answers_stand_for_one_another",
    ),
    "answers off by one": (
        "data/conversations.py",
        "[*[IGNORED] * (len(row.prompt) - 1), *row.answer]",
        "[*[IGNORED] * len(row.prompt), *row.answer[:-1]]",
        "data/test_conversations.py::test_the_target_and_its_end_alone_are_predicted_one_position_ahead",
    ),
    "source cut in training alone": (
        "data/conversations.py",
        "[max_length + 1 - min(longest, len(row.answer)) for row in answers]",
        "[max_length - min(longest, len(row.answer)) for row in answers]",
        "data/test_conversations.py::test_a_row_is_the_prompt_that_generation_reads_and_the_answer_after_it",
    ),
    "adapters scaled otherwise than merged": (
        "models/lora.py",
        "lora_alpha=2 * rank",
        "lora_alpha=rank",
        "contract/test_families.py::test_an_adapter_adds_twice_the_product_of_its_matrices",
    ),
    "groups not counted": (
        "objective/units.py",
        "sum(texts >= losses.LEAST_GROUP for texts, _ in rows)",
        "len(rows)",
        "evaluation/adapters/test_embedding.py::test_a_micro_batch_of_three_is_a_group_and_smaller_ones_are_none",
    ),
    "layers of cross-attention unweighted": (
        "objective/build.py",
        "cross_attention_layer(theirs), share)",
        "cross_attention_layer(theirs), 1.0)",
        "contract/test_families.py::test_attention_to_the_encoder_is_the_weighted_mean_of_its_layers_distances",
    ),
    "row number for content key": (
        "teachers/row_keys.py",
        "keys.append(digest.digest())",
        "keys.append(int(batch.rows[row]).to_bytes(DIGEST, 'big'))",
        "teachers/test_row_keys.py::test_a_key_depends_on_no_number_of_a_row_no_neighbour_and_no_padding",
    ),
    "padding kept in the key": (
        "teachers/row_keys.py",
        "span = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)",
        "span = slice(None)",
        "teachers/test_row_keys.py::test_a_key_depends_on_no_number_of_a_row_no_neighbour_and_no_padding",
    ),
    "documents left out of the key": (
        "teachers/row_keys.py",
        "for name in sorted(inputs):",
        'for name in ("input_ids",):',
        "teachers/test_row_keys.py::test_packed_rows_differ_by_where_their_documents_begin_and_by_what_is_asked_for",
    ),
    "scale of kept features left out": (
        "teachers/row_outputs.py",
        'states = states * _placed(rows, f"scale {name}", where)',
        'states = states + 0 * _placed(rows, f"scale {name}", where)',
        "teachers/test_cached.py::test_features_are_rounded_by_no_more_than_is_stated",
    ),
    "kept log-probabilities off by one entry": (
        "teachers/row_outputs.py",
        "kept.to(device).log_softmax(dim=-1)",
        "kept.to(device).roll(1, dims=-1).log_softmax(dim=-1)",
        "teachers/test_cached.py::test_the_likeliest_tokens_with_the_rest_as_one_are_kept_in_half_precision",
    ),
    "padding pooled": (
        "models/capture.py",
        "weights = real[..., None].to(torch.float32)",
        "weights = torch.ones_like(features[..., :1]).float()",
        "evaluation/adapters/test_embedding.py::test_an_embedding_is_the_mean_over_real_tokens_alone",
    ),
    "mask off by one": (
        "data/batches.py",
        "width or 0)) < lengths[:, None]",
        "width or 0)) <= lengths[:, None]",
        "contract/test_numerics.py::test_the_mask_counts_each_real_token_and_no_padding",
    ),
    "hidden[k] for k + 1": (
        "models/capture.py",
        "hidden = output[0] if isinstance(output, tuple) else output",
        "hidden = _inputs[0]",
        "contract/test_numerics.py::test_captured_attention_changes_no_bit_of_the_forward_and_equals_the_eager_maps",
    ),
    "attention softmaxed twice": (
        "models/attention.py",
        "return torch.add(added, scores, alpha=scaling).softmax(dim=-1)",
        "return torch.add(added, scores, alpha=scaling).softmax(dim=-1).softmax(dim=-1)",
        "contract/test_numerics.py::test_captured_attention_changes_no_bit_of_the_forward_and_equals_the_eager_maps",
    ),
    "attention without its padding mask": (
        "models/attention.py",
        "AttentionMaskInterface.register(ATTENTION, sdpa_mask)",
        "",
        "contract/test_numerics.py::test_captured_attention_changes_no_bit_of_the_forward_and_equals_the_eager_maps",
    ),
    "teacher in train mode": (
        "teachers/computed.py",
        ".eval().requires_grad_(False)",
        ".train().requires_grad_(False)",
        "contract/test_numerics.py::test_the_teacher_is_in_eval_mode_without_gradients_and_outside_the_student",
    ),
    "teacher keeps gradients": (
        "teachers/computed.py",
        ".eval().requires_grad_(False)",
        ".eval()",
        "contract/test_numerics.py::test_the_teacher_is_in_eval_mode_without_gradients_and_outside_the_student",
    ),
    "tail of the top entries left out": (
        "models/token_targets.py",
        "rest = scores.scatter(1, entries, -torch.inf).logsumexp(dim=1, keepdim=True)",
        "rest = torch.full_like(scores[:, :1], ABSENT)",
        "objective/losses/test_lm_head.py::test_a_student_that_left_the_kept_entries_is_seen_by_the_rest_as_one_entry",
    ),
    "mixture of logits in place of probabilities": (
        "models/mixtures.py",
        "return temperature * (logs + weights.to(logs.dtype).log()[:, :, None]).logsumexp(dim=0)",
        "return torch.einsum('kn,knc->nc', weights, torch.stack([each.float() for each in logits]))",
        "teachers/test_several.py::test_the_mixture_is_of_probabilities_and_not_of_logits",
    ),
    "confidence of teachers not normalised": (
        "models/mixtures.py",
        "return (1 - costs.softmax(dim=0)) / (len(logits) - 1)",
        "return 1 - costs.softmax(dim=0) / (len(logits) - 1)",
        "teachers/test_several.py::test_confidence_is_by_the_label_where_it_is_known_and_by_entropy_where_not",
    ),
    "weights of teachers not normalised": (
        "recipe/teachers.py",
        "return tuple(weight / sum(self.weights) for weight in self.weights)",
        "return self.weights",
        "distillation/test_several_teachers.py::test_a_recipe_keeps_one_teacher_as_a_text_and_several_as_a_list",
    ),
    "every teacher reads the first one's tokens": (
        "data/batches.py",
        "reading = self.readings[teacher]",
        "reading = self.readings[0]",
        "teachers/test_several_tokenizers.py::test_the_answers_are_those_of_each_teacher_on_its_own_tokens",
    ),
    "positions compared that one of the teachers lacks": (
        "data/batches.py",
        "return masks.all(dim=0) if by is None",
        "return masks.any(dim=0) if by is None",
        "teachers/test_several_tokenizers.py::test_positions_are_compared_that_every_teacher_has_a_counterpart_for",
    ),
    "rows of other teachers counted": (
        "objective/terms/base.py",
        "return mask if batch.taught_by is None else mask & (batch.taught_by == self.teacher)[:, None]",
        "return mask",
        "teachers/test_several.py::test_a_teacher_without_rows_in_a_micro_batch_changes_nothing",
    ),
    "gradients averaged over ranks": (
        "training/step.py",
        "accelerator.backward(total * accelerator.num_processes)",
        "accelerator.backward(total)",
        "contract/test_resume_and_ranks.py::test_two_ranks_take_the_steps_of_one_process",
    ),
    "projections outside the optimizer": (
        "training/optimizer.py",
        "trained = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]",
        'trained = [p for n, p in learner.named_parameters() if "maps" not in n and id(p) not in own]',
        "contract/test_numerics.py::test_every_projection_is_optimised_once_moves_in_a_step_and_belongs_to_its_pair_alone",
    ),
    "student kept in half precision": (
        "models/student.py",
        "    student.tie_weights()",
        "    student.tie_weights(); student.half()",
        "contract/test_numerics.py::test_the_student_cut_from_a_teacher_is_its_layers_in_float32",
    ),
    "embeddings counted as a layer": (
        "models/layer_selection.py",
        "(2 * (i + 1) * teacher + student) // (2 * student) - 1 for i",
        "max(0, (2 * (i + 1) * teacher + student) // (2 * student) - 2) for i",
        "alignment/test_plan.py::test_a_choice_of_layers_by_hand",
    ),
    "student left in eval mode": (
        "models/modes.py",
        "module.training = was_training",
        "module.training = False",
        "end_to_end/test_cli.py::test_the_student_is_trained_in_train_mode_and_scored_in_eval_mode",
    ),
    "batch norm sees the micro-batch of a student with statistics": (
        "training/learner.py",
        "        if self.keeps_statistics:\n",
        "        if False:\n",
        "contract/test_images.py::test_a_step_in_training_mode_is_divided_alike_if_batch_norm_keeps_its_statistics",
    ),
    "no shift in a causal model's targets": (
        "data/packing.py",
        "targets[:-1] = ids[1:]",
        "targets[:-1] = ids[:-1]",
        "data/test_tokenization.py::test_packed_documents_are_those_that_a_loop_over_tokens_packs",
    ),
    "packed documents attend to each other": (
        "data/masks.py",
        "same = (document[:, :, None] == document[:, None, :]) &",
        "same = (document[:, :, None] > -9) &",
        "contract/test_families.py::test_packed_documents_do_not_see_each_other_and_begin_at_position_zero",
    ),
    "a permutation that shows the token asked for": (
        "data/masks.py",
        "order[:, None, :] >= order[:, :, None]",
        "order[:, None, :] > order[:, :, None]",
        "contract/test_families.py::test_no_prediction_sees_the_token_that_is_asked_for",
    ),
    "the first of a permutation asked for": (
        "data/corruption.py",
        "targets[sequence[1:]] = ids[sequence[1:]]",
        "targets[sequence] = ids[sequence]",
        "contract/test_families.py::test_no_prediction_sees_the_token_that_is_asked_for",
    ),
    "masks drawn by batch instead of by row": (
        "data/batches.py",
        "np.random.default_rng([*draw, row])",
        "np.random.default_rng([*draw, rows[0]])",
        "contract/test_families.py::test_a_rows_mask_depends_on_seed_epoch_and_row_alone",
    ),
    "the vocabulary's loss a mean per micro-batch": (
        "objective/losses/lm_head.py",
        "    total = loss.hard * hard_sum + loss.soft * soft_sum",
        "    total = (loss.hard * hard_sum + loss.soft * soft_sum) / max(1, len(labels))",
        "objective/losses/test_lm_head.py",
    ),
    "the gradient of tokens without its temperature": (
        "objective/losses/fused.py",
        "plain.add_(theirs, alpha=-soft * temperature)",
        "plain.add_(theirs, alpha=-soft)",
        "objective/losses/test_fused.py",
    ),
    "the divergence of tokens without the temperature's square": (
        "objective/losses/fused.py",
        "soft_sum = temperature**2 * gap.mul_(theirs).sum()",
        "soft_sum = gap.mul_(theirs).sum()",
        "objective/losses/test_fused.py",
    ),
    "a block's gradient of the vocabulary dropped": (
        "objective/losses/lm_head.py",
        "        if self._waiting:\n            self._multiply_pending()\n        if self._needs_weight",
        "        if self._needs_weight",
        "objective/losses/test_lm_head.py",
    ),
    "an encoder's mask on the decoder": (
        "objective/terms/base.py",
        "mask = batch.answered if self.reads_target else batch.patches if self.reads_image else batch.compared",
        "mask = batch.tokens",
        "contract/test_families.py::test_features_are_compared_where_tokens_are_real_and_nowhere_else",
    ),
    "relations to padding and to the future": (
        "objective/terms/base.py",
        "return seen.tril() if self.looks_back else seen",
        "return torch.ones_like(seen)",
        "models/test_attention.py::test_a_position_is_related_to_those_it_may_see",
    ),
    "relations summed over heads": (
        "objective/losses/attention.py",
        "gap.mul_(probabilities).sum(dim=-1).mean(dim=1)",
        "gap.mul_(probabilities).sum(dim=-1).sum(dim=1)",
        "objective/losses/test_losses.py::test_relation_divergence_is_the_mean_over_heads_of_a_naive_loop",
    ),
    "relations of a block that gives no gradient to what it relates to": (
        "objective/losses/attention.py",
        "gradient += slope.transpose(-1, -2) @ ours[:, :, block]",
        "gradient += 0 * slope.transpose(-1, -2) @ ours[:, :, block]",
        "objective/losses/test_losses.py::test_relations_in_blocks_have_the_gradient_of_their_definition",
    ),
    "likeness by the biased estimate": (
        "alignment/similarity.py",
        "trace = (x.T @ y).square().sum() - own_x @ own_y",
        "trace = (x.T @ y).square().sum()",
        "alignment/test_similarity.py::test_hsic_is_the_average_over_all_quadruples_of_distinct_tokens",
    ),
    "special tokens counted in likeness": (
        "alignment/calibration.py",
        "return counted & ~torch.isin(",
        "return counted | torch.isin(",
        "distillation/test_map_layers.py::test_special_tokens_and_padding_say_nothing_of_likeness",
    ),
    "a step of generation sees its first token alone": (
        "models/attention.py",
        "mask.tril(key.size(2) - query.size(2))",
        "mask.tril()",
        "contract/test_families.py::test_a_step_of_generation_is_the_whole_forwards_last",
    ),
    "heads mixed over the wrong side": (
        "alignment/projections.py",
        "softmax(dim=-1), attention.float()",
        "softmax(dim=0), attention.float()",
        "models/test_attention.py::test_mixed_heads_start_as_the_mean_stay_probabilities_and_are_trained",
    ),
    "last batch of the evaluation dropped": (
        "data/epochs.py",
        "    while start < len(order):",
        "    while start + size <= len(order):",
        "data/test_epochs.py",
    ),
    "bytes of a character taken for the whole": (
        "data/token_matching.py",
        "return torch.where((start < end) & ~goes_on, end, _OPEN)",
        "return torch.where(start < end, end, _OPEN)",
        "data/test_token_matching.py::test_of_the_bytes_of_a_character_only_the_last_has_read_it",
    ),
    "left to right, compared by overlap": (
        "data/token_matching.py",
        "    if left_to_right:",
        "    if False:",
        "data/test_token_matching.py::test_a_model_that_goes_left_to_right_is_compared_where_both_have_read_the_same",
    ),
    "positions that the teacher lacks are counted": (
        "data/batches.py",
        "return self.tokens if self.matching is None else self.tokens & self.matching.compared",
        "return self.tokens",
        "data/test_token_matching.py::test_positions_that_the_teacher_lacks_enter_no_term",
    ),
    "soft targets divided by tokens that the teacher is not asked for": (
        "objective/terms/logits.py",
        "soft=self.soft * (targets / answered)),",
        "soft=self.soft),",
        "data/test_token_matching.py::test_soft_targets_are_a_mean_over_the_tokens_that_the_teacher_is_asked_for",
    ),
    "a continuing piece taken for a word": (
        "data/token_matching.py",
        'return b" " + token.encode()',
        "return token.encode()",
        "data/test_token_matching.py::test_entries_of_two_vocabularies_meet_by_what_they_stand_for",
    ),
    "what is masked for one is seen by the other": (
        "data/dual_tokenization.py",
        "for side, tokens in enumerate(ids):",
        "for side, tokens in list(enumerate(ids))[:1]:",
        "data/test_token_matching.py::test_what_is_masked_for_the_student_is_masked_for_its_teacher",
    ),
    "layers attended to without their norm": (
        "training/learner.py",
        "return F.layer_norm(pooled_features.float(), pooled_features.shape[-1:])",
        "return pooled_features.float()",
        "alignment/test_learned_map.py::test_attention_to_layers_by_hand",
    ),
    "padding counted in what is kept of a width": (
        "models/pruning.py",
        'real = batch["attention_mask"].bool()',
        'real = batch["attention_mask"] >= 0',
        "models/test_pruning.py",
    ),
    "a window without its context": (
        "data/windows.py",
        "yield max(0, end - length), end, asked",
        "yield asked, end, asked",
        "data/test_windows.py::test_windows_by_hand",
    ),
    "likelihood one position off": (
        "data/windows.py",
        "[IGNORED] * (asked - begin) + whole[asked + 1 : end + 1]",
        "[IGNORED] * (asked - begin) + whole[asked:end]",
        "data/test_windows.py::test_a_causal_likelihood_is_that_of_a_naive_loop_in_float64",
    ),
    "the rest of a masked word is seen": (
        "data/windows.py",
        "ids[position:end] = [self.mask] * (end - position)",
        "ids[position] = self.mask",
        "data/test_windows.py::test_a_pseudo_likelihood_is_that_of_a_naive_loop_in_float64",
    ),
    "a given token's bytes counted": (
        "data/windows.py",
        'size -= len(start.encode("utf-8", "surrogatepass"))',
        "size -= 0",
        "data/test_windows.py::test_words_and_bytes_are_of_what_is_asked_for",
    ),
    "the surest tokens masked again": (
        "evaluation/gap_filling.py",
        "torch.where(gaps, sure, torch.inf)",
        "torch.where(gaps, -sure, torch.inf)",
        "evaluation/test_evaluate.py::test_a_masked_model_fills_the_gap_by_mask_predict",
    ),
    "samples of two prompts drawn alike": (
        "evaluation/sampling.py",
        'f"{seed}\\0{draw}\\0{prompt}"',
        'f"{seed}\\0{draw}"',
        "evaluation/test_sampling.py::test_draws_depend_on_seed_prompt_and_number_and_are_uniform",
    ),
    "a temperature that multiplies logits": (
        "models/sampling.py",
        "= (logits.to(exact) / temperature",
        "= (logits.to(exact) * temperature",
        "evaluation/test_sampling.py::test_a_temperature_divides_the_logits",
    ),
    "a batch left out that is known in part": (
        "evaluation/generation.py",
        "if not all(row in known for row in rows)",
        "if not any(row in known for row in rows)",
        "evaluation/test_sampling.py::test_batches_that_are_known_are_left_out_and_the_others_stay_as_they_are",
    ),
    "samples of a server without seeds taken for one": (
        "served/client.py",
        'draw = chosen.seed if chosen.temperature > 0 and "seed" in dialect.refused else 0',
        "draw = 0",
        "served/test_answers.py::test_samples_are_told_apart_where_a_server_refuses_seeds",
    ),
    "rows of reported splits answered": (
        "distillation/sequence_level/rows.py",
        "if words in reported and words != ((),)",
        "if False and words in reported",
        "distillation/sequence_level/test_generate.py"
        "::test_a_train_that_is_all_reported_and_a_folder_without_train_are_refused",
    ),
    "answers that were cut off kept": (
        "distillation/sequence_level/filters.py",
        "[candidates[number].ended is not False for number in left]",
        "[True for number in left]",
        "distillation/sequence_level/test_filters.py"
        "::test_empty_answers_and_those_whose_tokens_ran_out_are_dropped_and_counted",
    ),
    "the worst of several answers taken for the best": (
        "distillation/sequence_level/filters.py",
        "scores if TEXT_METRICS[name].higher_is_better else -scores",
        "scores",
        "distillation/sequence_level/test_filters.py::test_the_best_of_each_row_is_kept_and_of_equal_ones_the_first",
    ),
    "an end that is forced counted as the model's": (
        "evaluation/generation.py",
        'latest = limit - 1 if own.get("forced_eos_token_id") is not None else limit',
        "latest = limit",
        "evaluation/test_sampling.py::test_an_answer_says_whether_the_model_ended_it_and_counts_its_tokens",
    ),
    "error rate averaged over texts": (
        "metrics/error_rates.py",
        "    return Counts(np.array(rows, dtype=float), per_cent,",
        "    return Counts(np.array([(e / max(n, 1), 1) for e, n in rows]), per_cent,",
        "metrics/test_text.py::test_error_rates_are_edits_over_characters_of_the_corpus_not_a_mean_of_rates",
    ),
    "the first of several references alone": (
        "metrics/error_rates.py",
        "rows.append(min(counted, key=lambda one: (one[0] / max(one[1], 1), one)))",
        "rows.append(counted[0])",
        "metrics/test_text.py::test_the_nearest_of_several_references_counts_and_an_empty_one_has_no_characters",
    ),
    "noise in what is right": (
        "evaluation/job.py",
        "texts = (noise(texts[0]), *texts[1:])",
        "texts = tuple(map(noise, texts))",
        "evaluation/test_evaluate.py::test_noise_is_in_what_is_read_alone",
    ),
    "an arm better where it is worse": (
        "metrics/significance.py",
        "sign = 1.0 if higher_is_better else -1.0",
        "sign = 1.0",
        "metrics/test_significance.py::test_what_is_lower_and_better_counts_as_better",
    ),
    "Bonferroni called Holm": (
        "metrics/significance.py",
        "(len(values) - rank) * values[number]",
        "len(values) * values[number]",
        "metrics/test_significance.py::test_holms_correction_by_hand",
    ),
    "seeds taken for known": (
        "metrics/significance.py",
        "of_seeds * _t(tail, seeds - 1)",
        "of_seeds * _normal(tail)",
        "metrics/test_significance.py::test_where_only_seeds_vary_the_test_is_students",
    ),
    "second stage never begun": (
        "training/task_trainer.py",
        "begun = max(first for first in self.begins if first <= done)",
        "begun = min(self.begins)",
        "end_to_end/test_cli.py::test_each_of_two_stages_has_a_step_at_least",
    ),
    "head frozen since the first stage": (
        "training/task_trainer.py",
        "            parameter.requires_grad_(True)",
        "            pass",
        "contract/test_resume_and_ranks.py::test_a_run_in_two_stages_teaches_its_head_in_the_second",
    ),
    "turns of tasks that forget the seed": (
        "distillation/multitask.py",
        "default_rng([seed, 0, 1])",
        "default_rng([0, 0, 1])",
        "distillation/test_multitask.py::test_whose_turn_a_step_is_depends_on_seed_and_step_alone",
    ),
    "results of another recipe taken": (
        "runs/archive.py",
        "if key not in (*_ELSEWHERE, *unknown) and asked[key] != made[key]",
        "if key in (*_ELSEWHERE, *unknown) and asked[key] != made[key] and False",
        "runs/test_ablation_spec.py::test_a_recipe_edited_behind_its_results_is_refused",
    ),
    "search by the worst": (
        "distillation/search_study.py",
        "best = scores.index(max(known))",
        "best = scores.index(min(known))",
        "distillation/test_search.py::test_a_search_chooses_on_train_alone_and_by_the_best_mean",
    ),
    "tail left out of what a server names": (
        "teachers/served.py",
        "1 - np.where(known, probabilities, 0).sum(axis=1)",
        "0 * np.where(known, probabilities, 0).sum(axis=1)",
        "teachers/test_served.py::test_what_is_not_named_or_not_known_to_the_student_is_one_entry",
    ),
    "a server's answers one position early": (
        "teachers/served.py",
        "return np.arange(1, positions + 1)",
        "return np.arange(positions)",
        "distillation/test_served_source.py::test_a_served_teacher_gives_the_losses_of_the_same_teacher_here",
    ),
    "a server that answers one token late is believed": (
        "teachers/served_checks.py",
        "for shift in (-1, 0, 1)}",
        "for shift in (0,)}",
        "teachers/test_served.py::test_a_shift_chance_and_impossible_probabilities_are_faults",
    ),
    "positions without an answer compared": (
        "data/batches.py",
        "return asked if self.returned is None else asked & self.returned",
        "return asked",
        "data/test_batches.py::test_positions_at_which_a_server_says_nothing_are_not_answered",
    ),
    "positions without an answer of a server that reads numbers compared": (
        "distillation/served_source.py",
        "    if everywhere:\n        return opened",
        "    if everywhere or source:\n        return opened",
        "distillation/test_served_source.py::test_positions_at_which_a_server_returns_nothing_are_left_out",
    ),
    "positions of samples without an answer compared": (
        "training/on_policy.py",
        "made.append(texts if self.mark_returned is None else self.mark_returned(texts))",
        "made.append(texts)",
        "training/test_on_policy.py::test_samples_are_marked_where_a_teacher_says_nothing",
    ),
    "two temperatures kept under one name": (
        "teachers/row_outputs.py",
        'return f"logs:{temperature_word(temperature)}"',
        'return f"logs:{temperature:g}"',
        "teachers/test_row_outputs.py::test_two_temperatures_have_two_arrays_however_near_they_are",
    ),
    "a schedule of one arm in the arms after it": (
        "runs/ablation_spec.py",
        "set_key(tree, key, deepcopy(value))",
        "set_key(tree, key, value)",
        "runs/test_ablation_spec.py::test_a_schedule_of_one_arm_stays_in_it",
    ),
    "sample scored without its last token": (
        "data/continuations.py",
        "*sample] for one, sample in pairs],",
        "*sample[:-1], IGNORED] for one, sample in pairs],",
        "contract/test_on_policy.py::test_every_sampled_token_and_its_end_is_compared_with_the_teacher_and_no_label_counts",
    ),
    "labels on the student's own texts": (
        "objective/objective.py",
        "replace(words, hard=0.0, divergence=divergence or words.divergence)",
        "replace(words, divergence=divergence or words.divergence)",
        "contract/test_on_policy.py::test_every_sampled_token_and_its_end_is_compared_with_the_teacher_and_no_label_counts",
    ),
    "samples drawn by their place in the batch": (
        "training/on_policy.py",
        "uniform_numbers(self._key(encoded, row, step), self.sampling.new_tokens) for row in every",
        "uniform_numbers(str(step + number), self.sampling.new_tokens) for number, row in enumerate(every)",
        "contract/test_on_policy.py::test_the_split_of_a_step_and_its_ranks_change_neither_samples_nor_gradient",
    ),
    "steps counted where tokens decide": (
        "training/run_length.py",
        "return Place(state.tokens, self.tokens, state.tokens",
        "return Place(state.step * self.tokens // self.steps, self.tokens, state.tokens",
        "training/test_run_length.py::test_a_place_is_a_step_unless_a_budget_of_tokens_decides",
    ),
    "dropout while texts are sampled": (
        "models/sampling.py",
        "with _eval_mode(model), torch.autocast",
        "with torch.no_grad(), torch.autocast",
        "models/test_sampling.py::test_a_sample_depends_neither_on_its_batch_nor_on_dropout_and_training_goes_on",
    ),
    "padding before prompts attended to": (
        "models/sampling.py",
        "attention_mask=self._real,\n            position_ids",
        "position_ids",
        "models/test_sampling.py::test_a_batch_with_cache_and_padding_samples_what_each_prompt_samples_alone",
    ),
    "a text that has ended is continued": (
        "models/sampling.py",
        "bool(sample and sample[-1] in ends)",
        "False",
        "models/test_sampling.py::test_a_batch_with_cache_and_padding_samples_what_each_prompt_samples_alone",
    ),
    "a token predicted from itself": (
        "metrics/chance.py",
        "np.log((seen - 1) /",
        "np.log(seen /",
        "metrics/test_chance.py::test_tokens_by_their_frequencies_are_predicted_from_the_others_by_hand",
    ),
    "neighbours taken from the other side": (
        "distillation/row_shifts.py",
        "block.texts[column][1 + offset : len(block) - 1 + offset]",
        "block.texts[column][1 - offset : len(block) - 1 - offset]",
        "distillation/test_row_shifts.py::test_a_column_is_taken_from_the_rows_before_or_after_within_its_block",
    ),
    "seed does not cover the data order": (
        "data/epochs.py",
        "generator = np.random.default_rng([seed, epoch])",
        "generator = np.random.default_rng([epoch])",
        "data/test_epochs.py",
    ),
    "prompt of speech asked for": (
        "data/tokenization.py",
        "[*[IGNORED] * (len(given) - 1), *ids]",
        "[*given[1:], *ids]",
        "contract/test_speech.py::test_the_decoder_reads_the_prompt_and_is_asked_for_the_transcript_and_its_end_worked_by_hand",
    ),
    "end of a transcript masked": (
        "data/tokenization.py",
        "[*[IGNORED] * (len(given) - 1), *ids]",
        "[*[IGNORED] * (len(given) - 1), *ids[:-1], IGNORED]",
        "contract/test_speech.py::test_soft_targets_are_on_the_transcript_and_its_end_alone",
    ),
    "special tokens found by the tokenizer's list": (
        "data/tokenization.py",
        "return ids[:start], ids[start + len(inner) :]",
        "return [token for token in ids[:start] if token in tokenizer.all_special_ids], ids[start + len(inner) :]",
        "contract/test_speech.py::test_the_prompt_is_the_one_that_generation_begins_with",
    ),
    "silence after a sound counted": (
        "data/media/inputs.py",
        "real = torch.arange(width) < lengths[:, None]",
        "real = torch.ones(len(numbers), width, dtype=torch.bool)",
        "contract/test_speech.py::test_positions_that_hold_sound_are_counted_and_no_others",
    ),
    "spectrum in bfloat16": (
        "data/media/readers.py",
        'torch.autocast("cpu", enabled=False)',
        'torch.autocast("cpu", torch.bfloat16)',
        "contract/test_speech.py::test_the_spectrum_is_computed_in_float32_whatever_the_training",
    ),
    "samples lost between chunks": (
        "evaluation/transcription.py",
        "sound = sound[end:]",
        "sound = sound[end + 1 :]",
        "contract/test_speech.py::test_a_long_sound_is_read_in_chunks_that_lose_no_sample",
    ),
    "sinusoidal positions trained": (
        "models/loading.py",
        "    _freeze_fixed(model)\n    shapes",
        "    shapes",
        "contract/test_speech.py::test_sinusoidal_positions_of_the_encoder_are_never_trained",
    ),
    "encodings of the first rows for any": (
        "data/media/encodings.py",
        "self.rows[np.asarray(numbers, dtype=np.int64)]",
        "self.rows[: len(numbers)]",
        "contract/test_media_runs.py::test_sounds_that_are_encoded_once_give_the_losses_of_sounds_that_are_encoded_each_time",
    ),
    "grid transposed": (
        "models/grids.py",
        "reshape(len(cells), -1, own.rows, own.columns)",
        "reshape(len(cells), -1, own.columns, own.rows)",
        "contract/test_images.py::test_features_are_moved_to_a_grid_by_the_means_of_its_cells_worked_by_hand",
    ),
    "class token taken for the first cell": (
        "models/grids.py",
        "features[:, own.class_tokens :]",
        "features[:, max(0, own.class_tokens - 1) :][:, : own.rows * own.columns]",
        "contract/test_images.py::test_features_are_moved_to_a_grid_by_the_means_of_its_cells_worked_by_hand",
    ),
    "last class token kept for the first": (
        "models/grids.py",
        "features[:, : wanted.class_tokens]",
        "features[:, own.class_tokens - wanted.class_tokens : own.class_tokens]",
        "contract/test_images.py::test_both_models_are_compared_cell_by_cell_on_the_common_grid",
    ),
    "height for width in the shape of a grid": (
        "models/grids.py",
        "zip(image, (grid.rows, grid.columns), strict=True)",
        "zip(image, (grid.columns, grid.rows), strict=True)",
        "contract/test_images.py::test_a_grid_is_found_by_its_number_of_cells_whatever_the_image",
    ),
    "maps of a convolution read column by column": (
        "models/capture.py",
        "hidden.flatten(2).transpose(1, 2) if",
        "hidden.transpose(2, 3).flatten(2).transpose(1, 2) if",
        "contract/test_images.py::test_what_is_captured_is_what_the_model_computes",
    ),
    "changed image seen by the student alone": (
        "data/media/inputs.py",
        "again = decoded\n",
        "again = [theirs.decode(self.rows.read(row), self.rows.name(row)) for row in numbers]\n",
        "contract/test_images.py::test_both_models_see_the_same_changed_image_though_they_read_it_in_their_own_ways",
    ),
    "changes of images drawn by batch": (
        "data/media/inputs.py",
        "np.random.default_rng([*draw, row])",
        "np.random.default_rng([*draw, numbers[0]])",
        "contract/test_images.py::test_a_change_depends_on_seed_epoch_and_row_alone",
    ),
    "teacher reads the student's pixels": (
        "data/media/inputs.py",
        "others = theirs.inputs(again)",
        "others = self.reader.inputs(again)",
        "contract/test_images.py::test_each_model_reads_images_of_its_own_size_and_normalisation",
    ),
    "special tokens of a transcript averaged": (
        "data/transcript_reader.py",
        "[[1 - special for special in row] or [0] for row in around]",
        "[[1 for special in row] or [0] for row in around]",
        "contract/test_transcripts.py::test_averages_over_real_frames_and_tokens_without_special_ones_are_compared",
    ),
    "padding of a sound averaged": (
        "training/learner.py",
        'signals.averaged(inputs["attention_mask"].bool())',
        'signals.averaged(inputs["attention_mask"] >= 0)',
        "contract/test_transcripts.py::test_averages_over_real_frames_and_tokens_without_special_ones_are_compared",
    ),
    "averages counted by positions": (
        "objective/terms/base.py",
        "return Unit.PAIRED",
        "return Unit.COMPARED",
        "contract/test_transcripts.py::test_averages_over_real_frames_and_tokens_without_special_ones_are_compared",
    ),
    "transcripts without a token compared": (
        "data/batches.py",
        "return self.counted & self.told.any(dim=1)",
        "return self.counted",
        "contract/test_transcripts.py::test_a_transcript_without_a_token_is_no_example_of_the_averages_and_gives_no_nan",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_place_of_a_seeded_fault_and_the_test_that_it_fails_are_there(name):
    file, right, wrong, test = MUTANTS[name]
    source, (tests, _, function) = (ROOT / "kdalign" / file).read_text(), test.partition("::")
    assert right in source, "the mutant's place has moved: name it anew"
    assert source.replace(right, wrong) != source
    assert f"def {function}" in (ROOT / "tests" / tests).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_fault_fails_its_test(name, tmp_path):
    file, right, wrong, test = MUTANTS[name]
    package = tmp_path / "kdalign"
    subprocess.run(["cp", "-r", str(ROOT / "kdalign"), str(package)], check=True)
    for name in ("tests", "tools"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path / name)], check=True)
    subprocess.run(["cp", str(ROOT / "pyproject.toml"), str(tmp_path)], check=True)
    source = (package / file).read_text()
    (package / file).write_text(source.replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:]
    assert "failed" in done.stdout

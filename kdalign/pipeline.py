"""The story of a run: prepare, load, plan, train, evaluate, record."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign import models, student
from kdalign.alignment import Plan, grown, layers_text, read_plan
from kdalign.architecture import count_parameters
from kdalign.balance import BALANCES, Balance
from kdalign.batches import Encoded
from kdalign.calibration import (
    CALIBRATION_TOKENS,
    SIMILARITY_TOKENS,
    UNTRAINED,
    as_read_by_teacher,
    calibrate,
    layer_attention,
    mapped,
    some,
    start_projections,
)
from kdalign.card import model_card
from kdalign.checkpoints import Progress
from kdalign.encoding import corrupted
from kdalign.environment import environment
from kdalign.errors import Interrupted, UsageError
from kdalign.files import whole_file, write_text
from kdalign.finetuning import finetuned
from kdalign.fresh import new_model
from kdalign.learner import Learner
from kdalign.models import Checkpoint
from kdalign.objective import Objective
from kdalign.observer import Observer, Silent
from kdalign.preflight import NOTEWORTHY, preflight
from kdalign.preparation import Prepared, claim, prepare, split_by_task
from kdalign.profiling import Profile, flops_of, latencies_ms, profile
from kdalign.projection import Projections
from kdalign.reading import Texts, announce, config_of, fingerprint, read_texts, tokenizer_of, with_copies
from kdalign.recipe import Objective as Weights
from kdalign.recipe import Recipe
from kdalign.runs import CARD, SCHEMA, ModelRecord, RunFolder, RunRecord, read_record
from kdalign.samples import Prompt, continued, reworded
from kdalign.tasks import Task
from kdalign.teachers import Teacher
from kdalign.terms import MaskedTokens
from kdalign.training import (
    Remapping,
    Stage,
    check_device,
    make_accelerator,
    start_trackers,
    total_steps,
    train,
    use_bf16,
)
from kdalign.version import __version__
from kdalign.work import Work

LATENCY_TOKENS = 128
_MACHINE = ("memory", "disk")
"""Checks that say nothing of the run itself, unless they were let through."""
SHOWN = 100
"""Characters of a sample that are shown while training; the history and the record keep all."""


def distill(
    recipe: Recipe, observer: Observer | None = None, *, resume: bool = False, overwrite: bool = False
) -> list[RunRecord]:
    """Distill one student per task of the recipe; returns each run's record.

    Args:
        recipe: what to do; several tasks lie in folders below ``out``, named after the task.
        observer: who watches.
        resume: go on where a run of this recipe stopped; finished tasks are kept.
        overwrite: put the new run in an old one's place.

    Raises:
        UsageError: the recipe cannot be carried out; nothing was written.
        RunError: training failed.
        Interrupted: a signal arrived; ``resume`` goes on.
    """
    observer = observer or Silent()
    runs = prepare_all(recipe, resume=resume, overwrite=overwrite)
    group = RunFolder(runs[0].folder.path.parent) if len(runs) > 1 else None
    accelerator = make_accelerator(recipe.train.device, recipe.train.trackers, runs[0].folder.path)
    if group is not None and accelerator.is_main_process:
        write_text(group.recipe, recipe.dump())
    records = []
    for run in runs:
        if resume and run.folder.complete:
            observer.announce(f"{run.task.name} is finished already: {run.folder.path}")
            records.append(read_record(run.folder.path))
        else:
            try:
                records.append(_distill_one(run, accelerator, observer, resume))
            except Interrupted as stop:
                line = f"{stop}; go on with: kdalign distill --out {(group or run.folder).path} --resume"
                raise Interrupted(line, stop.signal) from None
    accelerator.end_training()
    return records


def prepare_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Prepared]:
    """Check a recipe's runs, one a task, without writing anything; this is all that a dry run does.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_device(recipe.train.device, recipe.train.trackers)
    runs = [prepare(one) for one in split_by_task(recipe)]
    runs = [replace(run, checks=preflight(run)) for run in runs]
    if len({run.folder.path for run in runs}) < len(runs):
        raise UsageError(f"two tasks of {', '.join(recipe.data.task)} would share a folder: run them one by one")
    if len(runs) > 1:
        group = RunFolder(runs[0].folder.path.parent)
        claim(group, recipe.with_changes(out=str(group.path)), resume, overwrite)
    for run in runs:
        claim(run.folder, run.recipe, resume, overwrite or (len(runs) > 1 and not resume), run.inputs)
    return runs


def profile_models(
    names: Sequence[str],
    lengths: tuple[int, ...],
    batch_size: int = 32,
    device: str = "auto",
    weights: bool = True,
    revision: str | None = None,
    precision: str = "fp32",
) -> list[Profile]:
    """Profile models one after another; measured where ``weights`` are loaded.

    Raises:
        UsageError: a model that is not there, or a length beyond its positions.
    """
    checkpoints = [models.locate(name, revision if number == 0 else None) for number, name in enumerate(names)]
    place = make_accelerator(device).device
    profiles = []
    for checkpoint in checkpoints:
        model = models.load_as_it_is(checkpoint).to(place) if weights else None
        profiles.append(profile(checkpoint, lengths, batch_size, model, str(place), precision))
    return profiles


def _distill_one(run: Prepared, accelerator: Accelerator, observer: Observer, resume: bool) -> RunRecord:
    begun = time.perf_counter()
    folder, work, main = run.folder, run.work, accelerator.is_main_process
    bf16 = use_bf16(run.recipe.train.precision, accelerator.device)
    recipe = run.recipe.with_changes(train={**run.recipe.train.model_dump(), "precision": "bf16" if bf16 else "fp32"})

    # Texts to tokens; what cannot be encoded is refused before anything is written.
    tokenizer = tokenizer_of(run)
    config = config_of(run, tokenizer)
    texts = read_texts(run, tokenizer, config)
    encoded, watched = texts.train, texts.watched
    parts = sum(1 if run.plan is None else len(_parts(run.plan, recipe, *stage)) for stage in recipe.objective.stages)
    if total_steps(recipe.train, encoded) < parts:
        raise UsageError(
            f"{parts} parts (objective.align_first, align.grow) need a step each: train for {parts} at least"
        )

    if main:
        folder.begin(recipe.dump(), run.inputs, keep=resume)
    accelerator.wait_for_everyone()
    observer = observer.into(folder.log) if main else observer
    who = (
        f"{run.teacher.name} teaches {recipe.student}" if run.teacher is not None else f"{recipe.student} learns alone"
    )
    observer.announce(f"{who} on {work.task.name}; run folder {folder.path}")
    if work.task.found:
        observer.announce(f"worked out from the data: {work.task.found}")
    announce(run, texts, tokenizer, observer)
    if run.augmenting is not None:
        texts = with_copies(run, texts, tokenizer, config, accelerator, observer)
        encoded = texts.train
    for finding in run.checks:
        if finding.allowed or finding.what in NOTEWORTHY:
            observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")

    # The two models. The teacher is scored in float32, before it may be rounded for speed.
    taught = load_teacher(run, recipe, accelerator, bf16, observer)
    answers: dict[str, Any] = {}
    if taught is not None and main:
        taught.model.to(accelerator.device)
        answers = {split: work.answer(taught.model, e) for split, e in texts.reported_to_teacher.items()}
        watched_answers = work.answer(taught.model, texts.watched_by_teacher)
    big = taught.model if taught is not None else None
    student_model, student_source = load_student(run, config, big, tokenizer, encoded)
    student_model.to(accelerator.device)
    pair = [*([taught.model] if taught is not None else []), student_model]
    timed = min(LATENCY_TOKENS, *(models.positions(model.config) for model in pair))
    flops = [flops_of(model, timed) for model in pair] if main else [0] * len(pair)
    if big is not None and main:
        observer.announce(_compared(student_model, big, flops, timed))
    prompts = work.prompts(run.watched, tokenizer, recipe.train.samples)
    taught_says = []
    if taught is not None and main and run.teacher_tokenizer is not None:
        asked = prompts if texts.across is None else reworded(prompts, run.teacher_tokenizer)
        taught_says = continued(taught.model, run.teacher_tokenizer, asked)
    for prompt, saying in zip(prompts, taught_says, strict=False):
        observer.announce(f"teacher's sample: {_shown(prompt.text)} → {_shown(saying)}")
    latencies = latencies_ms(pair, timed) if main else [0.0] * len(pair)
    if recipe.train.lora is not None:
        student_model = student.adapted(student_model, recipe.train.lora, recipe.train.seed)
    student_model = student.freeze(student_model, recipe.train.freeze)
    student_order = work.order(student_model)
    teacher = None
    if taught is not None:
        rounded = torch.bfloat16 if bf16 else torch.float32
        teacher = Teacher(taught.model, work.order(taught.model), rounded, accelerator.device)

    # What aligns them, and what is minimised.
    plan = None
    if teacher is not None:
        plan = _calibrated(run, teacher, student_model, encoded, tokenizer, accelerator, resume)
        observer.announce(f"map: {plan.chosen}")
        if plan.choice and _untrained(run):
            observer.announce(UNTRAINED)
    shared = texts.across.shared if texts.across is not None else None
    dtype = torch.bfloat16 if bf16 else None
    filling = None
    if recipe.objective.masked_lm:
        observer.announce("masked_lm: a step costs about one more forward and backward of the student, on masked rows")
        filling = filling_term(student_model, recipe.train.seed, dtype)

    def minimised(part: Weights, plan: Plan | None) -> Objective:
        return work.objective(part, plan, dtype, shared).with_masked_lm(part.masked_lm, filling)

    stages = [
        Stage(begins, minimised(part, each))
        for after, part in recipe.objective.stages
        for begins, each in ([(after, plan)] if plan is None else _parts(plan, recipe, after, part))
    ]
    objective = stages[0].objective
    shapes = plan.projections if plan is not None and objective.uses_hidden else ()
    mixes = plan.mixes if plan is not None and objective.compared_maps else ()
    projections = Projections(shapes, recipe.train.seed, mixes)
    if plan is not None and teacher is not None and shapes and plan.style.start != "random":
        few = some(encoded, recipe.train.seed, SIMILARITY_TOKENS)
        start_projections(projections, plan, teacher.model, student_model, few, accelerator.device)
    learner = Learner(
        student.with_dropout(student_model, recipe.train.dropout),
        projections,
        plan,
        objective,
        student_order,
        bf16,
        [term for stage in stages for term in stage.objective.modules.values()],
        _balance(recipe, stages),
    )

    comparable = taught is not None and not (texts.across is not None and work.token_by_token)

    def evaluate(model: PreTrainedModel) -> tuple[float, dict[str, Any]]:
        found = work.answer(model, watched)
        scores = work.scores(found, watched, interval=False)
        if comparable:
            scores.append(work.agreement(found, watched_answers, interval=False))
        first = scores[0]
        said = continued(model, tokenizer, prompts)
        if said:  # one is enough for the eye; the history keeps all
            observer.announce(f"sample: {_shown(prompts[0].text)} → {_shown(said[0])}")
        deciding = float("-inf") if first.value is None else first.value if first.higher_is_better else -first.value
        return deciding, {score.metric: score.value for score in scores} | ({"samples": said} if said else {})

    remapping = None
    if plan is not None and teacher is not None and recipe.align.remap_every is not None:
        remapping = Remapping(
            recipe.align.remap_every,
            partial(_mapped_again, plan, teacher, encoded, tokenizer.all_special_ids, recipe.train.seed),
            lambda found: minimised(recipe.objective, found),
        )

    start_trackers(accelerator, recipe)
    progress = train(
        learner,
        teacher,
        stages,
        corrupted(encoded, recipe.data.augment, tokenizer, filling is not None),
        recipe.train,
        accelerator,
        folder,
        observer,
        evaluate,
        f"{'distilling' if taught is not None else 'training'} {work.task.name}",
        resume,
        remapping,
    )
    if progress.plan and main:
        write_text(folder.plan, progress.plan)
    attended = {}
    if plan is not None and learner.attends and teacher is not None:
        few = some(encoded, recipe.train.seed, SIMILARITY_TOKENS)
        attended = layer_attention(plan, learner, teacher, few, accelerator.device)
        for stack, rows in attended.items():
            observer.announce(f"attention of {stack} layers to the teacher's: {_shares_text(rows)}")
    for tracker in accelerator.trackers:
        tracker.finish()

    # What was exported is what is scored.
    if main:
        if recipe.train.lora is not None:
            student_model = student.merged(student_model)
        _export(student_model, tokenizer, projections, work, folder)
        checkpoint = models.locate(str(folder.student))
        exported = work.load(checkpoint, fresh_head=False, seed=0).to(accelerator.device)
        teacher_facts = None
        if taught is not None and run.teacher is not None:
            teacher_facts = _facts(
                run.teacher, taught.model, taught.head, run.teacher.name, latencies[0], flops[0], timed
            )
        record = RunRecord(
            schema=SCHEMA,
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=work.task.name,
            metrics=work.metrics,
            recipe=recipe.model_dump(mode="json"),
            student=_facts(checkpoint, exported, "trained", student_source, latencies[-1], flops[-1], timed),
            teacher=teacher_facts,
            data=_data_facts(run, texts) | {"tokenizer": fingerprint(tokenizer)},
            scores=_final_scores(run, exported, texts, answers, comparable),
            training=_training_facts(progress, run, accelerator) | ({"layer_attention": attended} if attended else {}),
            environment=environment(accelerator.device),
            seconds=time.perf_counter() - begun,
            samples=_samples(prompts, continued(exported, tokenizer, prompts), taught_says),
        )
        write_text(folder.student / CARD, model_card(record, folder.path))
        folder.write_record(record)
    accelerator.wait_for_everyone()
    return read_record(folder.path)


@dataclass(frozen=True)
class Taught:
    """A teacher in float32, and where its head came from."""

    model: PreTrainedModel
    head: str


def load_teacher(
    run: Prepared, recipe: Recipe, accelerator: Accelerator, bf16: bool, observer: Observer
) -> Taught | None:
    """The teacher, fine-tuned first where it has no head; None where there is none."""
    if run.teacher is None or run.teacher_tokenizer is None:
        return None
    if run.finetunes:
        assert isinstance(run.task, Task), "only classifiers are fine-tuned first"
        settings, tokenizer = recipe.finetune, run.teacher_tokenizer
        encoded = run.work.encode(run.train, tokenizer, run.teacher.config, scored=False)
        return Taught(*finetuned(run.teacher, run.task, encoded, settings, tokenizer, accelerator, bf16, observer))
    return Taught(run.work.load(run.teacher, fresh_head=False, seed=0), "its own")


def load_student(
    run: Prepared,
    config: PretrainedConfig,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded,
) -> tuple[PreTrainedModel, str]:
    """The student in float32 before its first step, and where it came from."""
    seed = run.recipe.train.seed
    if run.cut is not None:
        assert teacher is not None, "a student is cut out of a teacher"
        assert run.teacher is not None, "a student is cut out of a teacher"
        texts = as_read_by_teacher(some(encoded, seed, CALIBRATION_TOKENS))
        before = run.recipe.init_from == "pretrained"
        origin = run.work.load(run.teacher, fresh_head=True, seed=seed) if before else teacher
        model = student.made(origin, run.cut, run.cut_from, run.recipe.narrow_by, texts, seed)
        source = f"{run.recipe.student} at random"
        if not _untrained(run) and run.cut_from is not None:
            source = f"layers {layers_text(run.cut_from)} of {run.teacher.name}{' before fine-tuning' * before}"
            source += f", narrowed by {run.recipe.narrow_by}" if run.cut.narrows else ""
        if run.across and run.teacher_tokenizer is not None:
            model = student.with_vocabulary(model, tokenizer, run.teacher_tokenizer)
            source += f", with {len(tokenizer):,} entries made of its own"
        return model, source
    if run.new is not None:
        return new_model(config, seed), run.recipe.student
    own = run.student
    assert own is not None, "a student is cut, a checkpoint or new"
    keeps_head = run.work.keeps_head(own)
    model = run.work.load(own, fresh_head=not keeps_head, seed=seed)
    return model, f"{own.name} ({'its own' if keeps_head else 'a new'} head)"


def _parts(plan: Plan, recipe: Recipe, after: float, weights: Weights) -> tuple[tuple[float, Plan], ...]:
    """The parts of a stage, where each begins and its plan: several while layers are aligned one after the other."""
    return grown(plan, recipe.align.grow) if weights.built.aligning and after == 0 else ((after, plan),)


def filling_term(student_model: PreTrainedModel, seed: int, dtype: torch.dtype | None) -> MaskedTokens:
    """The head by which a student fills in masked tokens beside."""
    entries, inner = student_model.get_input_embeddings().weight.shape
    return MaskedTokens(int(student_model.config.hidden_size), (entries, inner), seed, dtype=dtype)


def _balance(recipe: Recipe, stages: Sequence[Stage]) -> Balance | None:
    """What the recipe balances terms by, those of all stages; None where their weights stay."""
    if recipe.objective.balance == "static":
        return None
    return BALANCES[recipe.objective.balance](list(dict.fromkeys(n for stage in stages for n in stage.objective.names)))


def _compared(small: PreTrainedModel, big: PreTrainedModel, flops: Sequence[int], length: int) -> str:
    """Size and cost of a student beside its teacher's; the teacher's FLOPs come first."""
    ours, theirs = (count_parameters(model) for model in (small, big))
    theirs_cost, ours_cost = flops
    return (
        f"student: {ours / 1e6:.2f} M parameters, {100 * ours / theirs:.0f} % of the teacher's; "
        f"{ours_cost / 1e9:.2f} GFLOPs for {length} tokens, {100 * ours_cost / theirs_cost:.0f} %"
    )


def _untrained(run: Prepared) -> bool:
    """Whether a student's layers start at random."""
    drawn = run.cut is not None and (run.cut_from is None or (run.cut.narrows and run.recipe.narrow_by == "random"))
    return run.new is not None or drawn


def _calibrated(
    run: Prepared,
    teacher: Teacher,
    student_model: PreTrainedModel,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    resume: bool,
) -> Plan:
    """The plan as it is trained with: kept from before on resume, else measured on a few training examples."""
    if resume and run.folder.plan.is_file():
        return read_plan(run.folder.plan)
    plan, seed = run.plan, run.recipe.train.seed
    assert plan is not None, "a teacher comes with a plan"
    if plan.choice and not plan.similarities:
        special = tokenizer.all_special_ids
        plan = mapped(plan, teacher.model, student_model, encoded, special, str(run.task.name), seed)
    if not plan.calibrated:
        batches, again = some(encoded, seed, CALIBRATION_TOKENS), run.recipe.align.remap_every is not None
        plan = calibrate(plan, teacher, batches, accelerator.device, every=again)
    if accelerator.is_main_process:
        write_text(run.folder.plan, plan.to_json())
    accelerator.wait_for_everyone()
    return plan


def _mapped_again(
    plan: Plan, teacher: Teacher, encoded: Encoded, special: Sequence[int], seed: int, student_model: PreTrainedModel
) -> Plan:
    """The plan for a student on its way; the teacher's statistics stay."""
    found = mapped(plan, teacher.model, student_model, encoded, special, "training text", seed)
    return found.with_statistics(plan.statistics)


def _export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, projections: Projections, work: Work, folder: RunFolder
) -> None:
    """Write the student as a stock Transformers checkpoint with the task's label names, and the projections beside."""
    order = work.order(model)
    if order is not None and isinstance(work.task, Task) and not work.task.regression:
        model.config.id2label = dict(zip(order, work.task.labels, strict=True))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}
    model.save_pretrained(folder.student)
    tokenizer.save_pretrained(folder.student)
    if projections.state_dict():
        with whole_file(folder.projections) as temporary:
            weights = {name: value.detach().cpu().contiguous() for name, value in projections.state_dict().items()}
            save_file(weights, temporary)


def _final_scores(
    run: Prepared, exported: PreTrainedModel, texts: Texts, answers: Mapping[str, Any], comparable: bool
) -> dict[str, object]:
    """Score both models on every reported split, and keep the predictions."""
    scores: dict[str, object] = {}
    for split, encoded in texts.reported.items():
        ours, theirs = run.work.answer(exported, encoded), answers.get(split)
        run.work.keep(run.folder.predictions(split), ours, encoded, theirs if comparable else None)
        of_teacher = [] if theirs is None else run.work.scores(theirs, texts.reported_to_teacher[split])
        scores[split] = {
            "student": [score.to_json() for score in run.work.scores(ours, encoded)],
            "teacher": [score.to_json() for score in of_teacher],
            "agreement": run.work.agreement(ours, theirs).to_json() if comparable else None,
            "calibration": {
                who: found.to_json()
                for who, answer, read in (
                    ("student", ours, encoded),
                    ("teacher", theirs, texts.reported_to_teacher.get(split)),
                )
                if answer is not None and read is not None
                if (found := run.work.calibration(answer, read)) is not None
            },
        }
    return scores


def _shares_text(rows: Sequence[Sequence[float]]) -> str:
    """Each student layer with the teacher layers that have most of its attention, such as ``0: 61 % 1, 30 % 0``."""
    found = []
    for number, row in enumerate(rows):
        most = sorted(range(len(row)), key=lambda layer: -row[layer])[:3]
        found.append(f"{number}: " + ", ".join(f"{100 * row[layer]:.0f} % {layer}" for layer in most))
    return "; ".join(found)


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"


def _samples(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> list[dict[str, str]]:
    found = [{"prompt": prompt.text, "student": said} for prompt, said in zip(prompts, ours, strict=True)]
    return [each | {"teacher": said} for each, said in zip(found, theirs, strict=True)] if theirs else found


def _facts(
    checkpoint: Checkpoint, model: PreTrainedModel, head: str, source: str, latency: float, flops: int, tokens: int
) -> ModelRecord:
    return ModelRecord(
        source=source,
        revision=checkpoint.hash,
        parameters=count_parameters(model),
        megabytes=models.weights_megabytes(checkpoint),
        head=head,
        latency_ms=latency,
        flops=flops,
        tokens=tokens,
    )


def _data_facts(run: Prepared, texts: Texts) -> dict[str, object]:
    facts: dict[str, object] = {
        "source": str(run.task.source),
        "train": {
            "n": len(run.train),
            "tokens": int(texts.labelled.lengths.sum()),
            "truncated": texts.labelled.truncated,
            "fingerprint": run.train.fingerprint(),
        },
        "watched": {"n": len(run.watched), "from": run.watched_word},
        "reported": {
            split: {
                "n": len(run.reported[split]),
                "truncated": e.truncated,
                "fingerprint": run.reported[split].fingerprint(),
            }
            for split, e in texts.reported.items()
        },
    }
    if run.unlabelled is not None and texts.unlabelled is not None:
        facts["unlabelled"] = {
            "source": run.unlabelled.source,
            "n": len(run.unlabelled.examples),
            "an_epoch": run.unlabelled.an_epoch,
            "tokens": int(texts.unlabelled.lengths.sum()),
            "truncated": texts.unlabelled.truncated,
            "fingerprint": run.unlabelled.examples.fingerprint(),
            "left_out": dict(run.unlabelled.dropped),
        }
    if run.augmenting is not None:
        copies = texts.copies
        facts["augmented"] = {
            "model": run.augmenting.name,
            "revision": run.augmenting.hash,
            "n": len(copies) if copies is not None else 0,
            "tokens": int(copies.lengths.sum()) if copies is not None else 0,
        }
    facts["checks"] = {each.what: each.said for each in run.checks if each.allowed or each.what not in _MACHINE}
    return facts if texts.across is None else facts | {"tokenizers": texts.across.facts}


def _training_facts(progress: Progress, run: Prepared, accelerator: Accelerator) -> dict[str, object]:
    best = run.recipe.train.select == "best"
    return {
        "ranks": accelerator.num_processes,
        "steps": progress.step,
        "exported_step": progress.best_step if best else progress.step,
        "examples": progress.examples,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        **progress.speed,
        "terms": progress.parts,
    }

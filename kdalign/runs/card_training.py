"""The section of a model card on training: objective, layers, cost, settings, machine."""

from collections.abc import Iterable, Mapping

from kdalign.alignment.plan import Plan
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind
from kdalign.recipe import ObjectiveWeights, describe_weights
from kdalign.recipe.presets import DEFAULT
from kdalign.recipe.schedules import percent
from kdalign.runs.card_facts import CardFacts
from kdalign.runs.markdown import code_span, escape, escape_line

_BALANCES = {
    "size": "each weight is divided by its term's running size",
    "uncertainty": "each weight is multiplied by a learned factor",
    "pace": "terms that fall more slowly weigh more",
}
_LAYER_WEIGHTS = {
    "ramp": "in proportion to a layer's rank from the bottom",
    "learned": "learned",
    "adaptive": "more for layers that are further apart",
}


def training_section(card: CardFacts) -> str:
    """Write how the student was trained."""
    machine, settings = card.record.environment, card.recipe.train
    ranks = card.record.cost.ranks
    lines = ["## Training", "", *_objective(card)]
    if card.plan is not None:
        layers = f"Layers: {card.plan.chosen or 'as planned'}; student:teacher {_pairs(card.plan)}"
        lines.append(f"- {escape_line(layers + _layer_weights(card, card.plan))}")
    if settings.freeze:
        lines.append(f"- Not trained: {escape(', '.join(settings.freeze))}")
    lines += [
        *_cached(card),
        *_spent(card),
        f"- AdamW, learning rate {settings.lr:g} ({escape(settings.scheduler)}), "
        f"weight decay {settings.weight_decay:g}, precision {escape(settings.precision)}, seed {settings.seed}"
        + (f", low-rank adapters of rank {settings.lora}, merged" if settings.lora else ""),
        f"- On {escape(machine['device'])}, {ranks} process{'es' if ranks > 1 else ''} of "
        f"{escape(str(machine['threads']))} threads; {escape(machine['platform'])}, Python {escape(machine['python'])}",
        *_ranks(card),
        f"- {escape_line(', '.join(f'{name} {version}' for name, version in machine['libraries'].items()))}",
    ]
    return "\n".join(lines)


def _ranks(card: CardFacts) -> Iterable[str]:
    """A line on the ranks that trained, if their number changed or they shared the models."""
    spans = card.record.training.get("parallelism", [])
    if len(spans) > 1 or any(span["sharding"] != "none" for span in spans):
        said = [
            f"{span['ranks']} from step {span['step']:,}" + f" ({span['sharding']})" * (span["sharding"] != "none")
            for span in spans
        ]
        yield f"- Ranks: {escape_line(', '.join(said))}"


def _objective(card: CardFacts) -> Iterable[str]:
    """Lines on the minimised objective and its schedules."""
    recipe, objective = card.recipe, card.recipe.objective
    tokens = "tokens" if card.head in LANGUAGE_HEADS.values() else "classes"
    said = describe_weights("embeddings" if card.head is HeadKind.NONE else tokens)
    if recipe.preset not in (None, DEFAULT):
        yield f"- Preset: {code_span(str(recipe.preset))}, but for what the recipe says"
    if objective.align_first:
        (_, layers), (after, answers) = objective.stages
        share = percent(after)
        first, then = _sum(card, layers, 0, after, said), _sum(card, answers, after, 1, said)
        yield f"- Objective of the first {share} of the steps, which align layers: {first}"
        yield f"- Objective of the steps after them, which learn answers: {then}"
    else:
        yield f"- Objective: {_sum(card, objective, 0, 1, said)}"
    for key, change in objective.moving.items():
        what = "temperature" if key == "temperature" else f"the weight of {said.get(key, key)}"
        yield f"- Scheduled: {escape(f'{what} {change}')}"
    if recipe.on_policy.share:
        yield f"- On-policy: {escape(str(recipe.on_policy))}, without labels"
    if objective.balance != "static":
        yield f"- Balance of terms: {_BALANCES[objective.balance]}"


def _sum(card: CardFacts, objective: ObjectiveWeights, begin: float, end: float, said: Mapping[str, str]) -> str:
    """The weighted sum of terms from ``begin`` to ``end`` of the run; a scheduled number has both its values."""
    moving = {key: (each.at(begin), each.at(end)) for key, each in objective.moving.items()}

    def shown(key: str, still: float) -> str:
        first, last = moving.get(key, (still, still))
        return f"{first:g} → {last:g}" if first != last else f"{first:g}"

    weights = {key: shown(key, weight) for key, weight in objective.built.weights.items() if weight}
    terms = [
        f"{f'({weight})' if '→' in weight else weight} × {said.get(key, key)}"
        for key, weight in weights.items()
        if weight != "0"
    ]
    softened = "alpha" in weights and card.head is not HeadKind.NONE
    temperature = f"; temperature {shown('temperature', objective.temperature)}" if softened else ""
    return escape(" + ".join(terms) + temperature)


def _layer_weights(card: CardFacts, plan: Plan) -> str:
    """Weights of layers and the schedule of their alignment, if they are not uniform."""
    align = card.recipe.align
    if not card.recipe.objective.built.aligning:
        return ""
    weights = align.weights if plan.weighting == "static" else plan.weighting
    named = _LAYER_WEIGHTS.get(weights) if isinstance(weights, str) else ", ".join(f"{one:g}" for one in weights)
    grow = f"; one more at a time, from the bottom, over the first {percent(align.grow)} of the steps"
    return (f"; weights of layers: {named}" if named else "") + (grow if align.grow else "")


def _spent(card: CardFacts) -> Iterable[str]:
    """Steps, examples, tokens and seconds; for one of several tasks, its own after those of the shared body."""
    cost, settings = card.record.cost, card.recipe.train
    batch = f"{settings.batch_tokens:,} tokens" if settings.batch_tokens else f"{settings.batch_size:,} examples"
    together = card.record.training.get("multi_task")
    counted = "tokens" if card.modality == "text" else "positions"
    read = f"{cost.examples:,} examples, {cost.tokens:,} {counted}, {cost.seconds:,.0f} seconds"
    if together is None:
        exported = f"; step {cost.exported_step:,} was exported" if cost.exported_step != cost.steps else ""
        yield f"- {cost.steps:,} steps of {batch}, {read}{exported}"
        return
    others = ", ".join(code_span(name) for name in together["tasks"] if name != card.record.task)
    yield (
        f"- The body, shared with {others}: {together['steps']:,} steps of {batch} in all, {together['seconds']:,.0f} "
        f"seconds; each step took one task's batch"
    )
    yield f"- Of these, this task and its head had {cost.steps:,} steps: {read}"


def _cached(card: CardFacts) -> Iterable[str]:
    """A line on the teacher's outputs, if they were read from a cache: what was kept, and what was left out."""
    cache = card.record.training.get("cache")
    if cache is None:
        return
    parts = [f"{', '.join(cache['kept'])}; features in {cache['states']}"]
    if cache.get("top_k"):
        rest = max(cache["mean_tails"].values(), default=0.0)
        parts.append(
            f"of tokens the {cache['top_k']:,} likeliest in {cache['logs']}, and all others, {rest:.2%} of the "
            f"probability, as one"
        )
    yield f"- {escape_line('The teacher read each row once; its outputs were kept: ' + '; '.join(parts))}"


def _pairs(plan: Plan) -> str:
    """Pairs of student and teacher layers, stack by stack."""
    return ", ".join(
        f"{one.student_stack} "
        + " ".join(f"{ours}:{theirs}" for ours, theirs in one.pairs)
        + (f" (teacher's {one.teacher_stack})" if one.teacher_stack != one.student_stack else "")
        for one in plan.maps
    )

"""Facts of a run that its model card states."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdalign.alignment.plan import Plan, read_plan
from kdalign.data.media.rows import Modality
from kdalign.data.tasks import ClassificationTask, LanguageTask, find_task
from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.language import language_task
from kdalign.data.tasks.lookup import INFERRED
from kdalign.errors import UsageError
from kdalign.files import read_json
from kdalign.models.heads import HeadKind, head_of_class
from kdalign.models.layouts import LAYOUTS, modality_of
from kdalign.recipe import DataSettings, Recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RunRecord
from kdalign.runs.record_schema import check_for_card

_PIPELINES = {
    HeadKind.CLASSIFIER: "text-classification",
    HeadKind.MASKED: "fill-mask",
    HeadKind.CAUSAL: "text-generation",
    HeadKind.SEQ2SEQ: "text2text-generation",
    HeadKind.DUAL: "zero-shot-image-classification",
    HeadKind.CTC: "automatic-speech-recognition",
    HeadKind.NONE: "feature-extraction",
}
_PIPELINES_OF_KINDS = {"translation": "translation", "summarization": "summarization", "dialogue": "summarization"}
_PIPELINES_OF_MEDIA = {"image": "image-classification", "audio": "automatic-speech-recognition"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of the hub; a local folder's hash is shorter."""


@dataclass(frozen=True)
class CardFacts:
    """Facts of a run and its student for a model card.

    Attributes:
        name: the run folder's name.
        head: the student's head.
        model_class: the student's class in Transformers.
        model_type: the student's type in Transformers.
        task: the task as far as it is known without its data; None if it is not.
        hub: the hub's data set and its configuration; None for other or unknown data.
        plan: the layer plan; None without a teacher.
        starts: hub ids of the checkpoints that the student was made from.
        channels: channels of the images that the student reads.
    """

    record: RunRecord
    recipe: Recipe
    name: str
    head: HeadKind
    model_class: str
    model_type: str
    task: ClassificationTask | LanguageTask | None
    hub: tuple[str, str | None] | None
    plan: Plan | None
    starts: tuple[str, ...]
    channels: int = 3

    @property
    def modality(self) -> Modality:
        """What the student reads."""
        return modality_of(self.model_type)

    @property
    def permutation(self) -> bool:
        """True if it predicts tokens in any order (XLNet)."""
        return self.model_type in LAYOUTS and LAYOUTS[self.model_type].family == "permutation"

    @property
    def reads_padding(self) -> bool:
        """True for a dual encoder that reads the padding of texts (SigLIP)."""
        return self.model_type in LAYOUTS and LAYOUTS[self.model_type].reads_padding

    @property
    def pipeline(self) -> str:
        """The hub's pipeline tag of the student."""
        if self.modality in _PIPELINES_OF_MEDIA and self.head is not HeadKind.DUAL:
            return _PIPELINES_OF_MEDIA[self.modality]
        kind = self.task.kind if isinstance(self.task, LanguageTask) else ""
        return _PIPELINES_OF_KINDS.get(kind, _PIPELINES[self.head])

    @property
    def data_name(self) -> str:
        """The data set's id on the hub, or the name of its folder."""
        return str(self.record.data["source"]) if self.hub is not None else Path(self.record.data["source"]).name


def read_card_facts(record: RunRecord, folder: RunFolder) -> CardFacts:
    """Read the facts that a card states from a run's record and folder.

    Raises:
        UsageError: the record lacks facts, or the folder has no exported student.
    """
    check_for_card(record.to_json(), f"the record of run {str(folder.path)!r}")
    try:
        config = read_json(folder.student / "config.json", parse_constant=float)  # Transformers writes infinities there
        if not isinstance(config, dict) or not isinstance(config.get("architectures") or [], list):
            raise UsageError("it is not a configuration")
    except UsageError:
        raise UsageError(f"run {str(folder.path)!r} has no exported student (looked for student/config.json)") from None
    model_class, model_type = str((config.get("architectures") or [""])[0]), str(config.get("model_type"))
    recipe = record.parsed_recipe()
    data = recipe.data
    task = _task_of(data)
    hub = None
    if data.dataset is not None:
        hub = (data.dataset, data.config)
    elif data.folder is None and task is not None and task.source.dataset:
        hub = (task.source.dataset, task.source.config)
    return CardFacts(
        record=record,
        recipe=recipe,
        name=folder.path.resolve().name,
        head=head_of_class(model_class),
        model_class=model_class,
        model_type=model_type,
        task=task,
        hub=hub,
        plan=read_plan(folder.plan) if folder.plan.is_file() else None,
        starts=_starts(record, recipe, folder),
        channels=1 if config.get("num_channels") == 1 else 3,
    )


def _task_of(data: DataSettings) -> ClassificationTask | LanguageTask | None:
    """The task by its name or file, without reading data."""
    (name, *_) = data.task
    if name in GLUE:
        return GLUE[name]
    if name in INFERRED:
        return None
    try:
        return language_task(name) or find_task(name, data.folder, data.dataset, data.config)
    except UsageError:  # its file, or the folder that it points to, is no longer there
        return None


def _starts(record: RunRecord, recipe: Recipe, folder: RunFolder) -> tuple[str, ...]:
    """Hub ids of the teacher and of the checkpoint that the student started from."""
    found = []
    teachers = record.teachers or ([record.teacher] if record.teacher is not None else [])
    named = zip(recipe.teacher_names, teachers, strict=False)
    found += [name for name, teacher in named if _COMMIT.fullmatch(teacher.revision)]
    inputs = folder.read_inputs()
    if _COMMIT.fullmatch(inputs.get("student", "")):
        found.append(recipe.student)
    return tuple(dict.fromkeys(found))

"""A cache of what the teacher of a setting says on all its rows."""

import torch

from kdalign.distillation.teacher_cache import kept_outputs
from kdalign.models.architecture import layout_of
from kdalign.observer import no_progress
from kdalign.teachers.cache_files import CacheFolder
from kdalign.teachers.cached import CachedTeacher, CacheSource, fill_cache, missing_rows

CPU = torch.device("cpu")


def begin_cache(setting, path, top_k=None, logs="fp32", states="fp32"):
    """A cache of nothing yet, for all that a setting's objective asks for."""
    config = setting.teacher.model.config
    kept = kept_outputs([setting.objective], setting.learner.plan)
    source = CacheSource("t", "w", layout_of(config).family, "p", "fp32", (), config.vocab_size)
    meta = source.facts | {"keep": list(kept.words), "tail": None, "top_k": top_k, "logs": logs, "states": states}
    path.mkdir(parents=True, exist_ok=True)
    folder = CacheFolder(path)
    folder.begin(meta)
    cached = CachedTeacher(folder)
    cached.open()
    return cached


def fill(setting, cached, rows=None):
    """Let the setting's teacher read these rows, or all, and open the cache."""
    rows = list(range(len(setting.data))) if rows is None else rows
    missing = missing_rows(cached.index, setting.data, rows)
    if missing:
        fill_cache(setting.teacher, cached, setting.data, missing, CPU, no_progress)
    cached.open()
    return list(missing.rows)


def build_cache(setting, path, **formats):
    """A cache of all rows of a setting."""
    cached = begin_cache(setting, path, **formats)
    fill(setting, cached)
    return cached

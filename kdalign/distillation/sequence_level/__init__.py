"""Sequence-level distillation data: a teacher answers the training prompts, and its answers become a data folder.

Kim and Rush 2016, arXiv:1606.07947, section 3.2. ::

    settings    every choice, validated once
    rows        a kind of task as prompts with references, and a row with its answer replaced
    teachers    who answers: a local model, or one behind an API
    folder      the output folder: who claims it, answers as they arrive, the record
    filters     which answers are kept: expressions, the best of several, no duplicates
    generate    prepare, answer, filter, write
"""

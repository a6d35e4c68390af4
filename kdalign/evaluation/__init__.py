"""Evaluation: score any model on any split, and keep what it predicted.

::

    evaluate             scores targets into one file, as a request says (request, find_targets, job, result)
    target               what can be scored: local_model, served_model, baselines
    adapters             what differs between kinds of task: tokens, heads, predictions, scores
    predictions          classes, scores and embeddings
    likelihood           perplexities
    multiple_choice      classes by the likelihood of label words
    generation, samples  generated texts
    prediction_file      scores of a file of predictions and references
    rescoring            recorded scores computed again from kept predictions
"""

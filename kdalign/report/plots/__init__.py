"""Plots of measurements, written as PNG, SVG or PDF by the file's ending."""

from kdalign.report.plots.comparisons import draw_calibration, draw_differences, draw_quality
from kdalign.report.plots.figure import NamedFigure, check_figure, check_folder, save, save_all
from kdalign.report.plots.models import draw_attention, draw_costs, draw_likeness, draw_similarities
from kdalign.report.plots.runs import draw_gradients, draw_samples, draw_shares, draw_terms, figures_of

__all__ = [
    "NamedFigure",
    "check_figure",
    "check_folder",
    "draw_attention",
    "draw_calibration",
    "draw_costs",
    "draw_differences",
    "draw_gradients",
    "draw_likeness",
    "draw_quality",
    "draw_samples",
    "draw_shares",
    "draw_similarities",
    "draw_terms",
    "figures_of",
    "save",
    "save_all",
]

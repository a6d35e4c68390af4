"""Results as people read them: terminal, Markdown, LaTeX, CSV, HTML, plots and progress; computes nothing."""

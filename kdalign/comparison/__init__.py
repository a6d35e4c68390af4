"""Records of runs and evaluations put into one table: columns, rows, tests, ranking, footnotes, gates; no model."""

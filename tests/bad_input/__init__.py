"""Bad and borderline inputs of every command, drawn by hypothesis or kept, and what must hold for each of them.

``python -m tests.bad_input --count 2000`` runs them and prints counts by kind. What must hold is in ``run.judge``.
"""

import sys
from pathlib import Path

if str(Path(__file__).parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent.parent))  # ``support`` is imported by this root

"""The public Python interface: what it names, and that naming it costs nothing."""

import subprocess
import sys

import kdalign

PUBLIC = set(
    "Architecture EvalRequest GenerateSettings Interrupted KdalignError LayerMap Plan PlanOptions Recipe RunError "
    "RunRecord Stack UsageError __version__ allow_code build_recipe compare describe distill evaluate generate "
    "load_recipe propose read_record".split()
)


def test_the_public_names_are_these_and_each_resolves():
    assert set(kdalign.__all__) == PUBLIC
    assert kdalign.__all__ == sorted(kdalign.__all__)
    for name in PUBLIC:
        found = getattr(kdalign, name)
        assert found.__doc__, name
    assert dir(kdalign) == sorted(PUBLIC)


def test_importing_kdalign_loads_nothing_heavy():
    code = "import sys, kdalign; assert not {'torch', 'transformers', 'pydantic', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

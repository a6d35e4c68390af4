"""Compare the speed of kdalign and of TRL's GKD trainer, off-policy and on-policy, in turns on the same models.

Both train a student of LAYERS layers, cut from the teacher, with forward KL alone in bfloat16 on the same rows of
random tokens. Off-policy, all of a row is predicted; on-policy, half of it is a prompt, and the student samples the
other half at temperature 1, which no token ends. Figures are tokens of rows a second, and the process's peak memory.

    python benchmarks/on_policy.py --teacher DIR --trl /tmp/trl

makes an environment with TRL in /tmp/trl, on top of the packages of the one that runs this (`pip install --no-deps
trl`), and prints each round and the ratios of the medians. Run it on a quiet machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

KINDS = ("off-policy", "on-policy")
UNLABELLED = -100


def measure(given: argparse.Namespace, step, before: int) -> dict[str, float]:
    """Time steps after some that warm up; ``step`` takes the next one."""
    for _ in range(before):
        step()
    times = []
    for _ in range(given.steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    tokens = given.rows * given.length
    return {"tokens_per_second": tokens / statistics.median(times), "seconds": statistics.median(times)}


def rows_of(given: argparse.Namespace) -> list[list[int]]:
    import numpy as np
    from transformers import AutoConfig

    entries = int(AutoConfig.from_pretrained(given.teacher).vocab_size)
    return np.random.default_rng(0).integers(10, entries, (given.rows, given.length)).tolist()


def run_kdalign(given: argparse.Namespace, kind: str) -> dict[str, float]:
    """kdalign's own loop, alarms and history included; the first five on-policy steps also measure the data."""
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    from kdalign.alignment.projections import Projections
    from kdalign.alignment.propose import propose
    from kdalign.data.tokenized_split import TokenizedSplit
    from kdalign.models.architecture import describe
    from kdalign.models.sampling import Sampling
    from kdalign.objective.build import build_language_objective
    from kdalign.observer import NullObserver
    from kdalign.recipe import ObjectiveWeights, OnPolicySettings, TrainSettings
    from kdalign.runs.folder import RunFolder
    from kdalign.teachers.computed import ComputedTeacher
    from kdalign.training.learner import Learner
    from kdalign.training.loop import Trainer
    from kdalign.training.on_policy import OnPolicy
    from kdalign.training.sample_alarms import FIRST
    from kdalign.training.task_trainer import Stage, TrainTask

    device, dtype = torch.device("cpu"), torch.bfloat16
    big, small = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (given.teacher, given.student)
    )
    teacher = ComputedTeacher(big, None, dtype, device)
    weights = ObjectiveWeights(hard=0, alpha=1, beta=0, gamma=0, delta=0, temperature=1)
    plan = propose(describe(big.config), describe(small.config))
    objective = build_language_objective(weights, plan, dtype)
    learner = Learner(small, Projections((), 0), plan, [objective], None, True)
    half = given.length // 2 if kind == "on-policy" else 1
    rows = rows_of(given)
    columns = {
        "input_ids": [row[:-1] for row in rows],
        "targets": [[UNLABELLED] * (half - 1) + row[half:] for row in rows],
    }
    encoded = TokenizedSplit(columns, None, {"input_ids": 0, "targets": UNLABELLED})
    settings = OnPolicySettings(share=float(kind == "on-policy"), max_new_tokens=given.length - half)
    entries = int(small.config.vocab_size)
    sampling = Sampling(settings.max_new_tokens, 1.0, 1.0, frozenset(), entries, given.length)
    on_policy = OnPolicy(settings, sampling, 0, given.length, dtype)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.begin("{}", {}, keep=False)
        task = TrainTask("speed", learner, teacher, [Stage(0.0, objective)], encoded, run, on_policy=on_policy)
        before = 1 + FIRST * (kind == "on-policy")
        train = TrainSettings(max_steps=before + given.steps, batch_size=given.rows, lr=1e-5, clip=1.0)
        trainer = Trainer([task], [0] * train.max_steps, train, Accelerator(cpu=True), run, NullObserver())
        return measure(given, lambda: trainer._take_step(False), before)


def run_trl(given: argparse.Namespace, kind: str) -> dict[str, float]:
    """TRL's GKD trainer, a step at a time."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    big = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=torch.bfloat16)
    small = AutoModelForCausalLM.from_pretrained(given.student, dtype=torch.float32)
    small.generation_config.eos_token_id = None  # samples have their full length
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    half = given.length // 2 if kind == "on-policy" else 1
    ids = torch.tensor(rows_of(given))
    labels = ids.clone()
    labels[:, :half] = UNLABELLED
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "prompts": ids[:, :half], "prompt_attention_mask": torch.ones_like(ids[:, :half]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, lmbda=float(kind == "on-policy"), beta=0.0, temperature=1.0, bf16=True, use_cpu=True,
            max_new_tokens=given.length - half, per_device_train_batch_size=given.rows, report_to=[], max_length=None,
            learning_rate=1e-5, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GKDTrainer(
            small, big, config, data_collator=lambda _: dict(batch), processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1  # set by the loop around steps
        optimizer = trainer.create_optimizer()
        model = trainer.accelerator.prepare_model(trainer.model).train()

        def step() -> None:
            trainer.training_step(model, dict(batch))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad()

        return measure(given, step, 1)


def make_environment(folder: Path) -> Path:
    """An environment with TRL on top of the packages of this one; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "trl"], check=True)
    (found,) = folder.glob("lib/python*/site-packages")
    (found / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def cut_student(teacher: str, layers: int, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from kdalign.models.layer_selection import STRATEGIES
    from kdalign.models.student import copy_layers

    big = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    chosen = STRATEGIES["uniform"](layers, int(big.config.num_hidden_layers))
    copy_layers(big, {"decoder": tuple(chosen)}).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--trl", type=Path, help="environment with TRL; made if it is not there")
    parser.add_argument("--layers", type=int, default=15, help="layers of the student")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--worker", choices=("kdalign", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--student", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        found = {"kdalign": run_kdalign, "trl": run_trl}[given.worker](given, given.kind)
        print(json.dumps({**found, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    pythons = {"kdalign": Path(sys.executable)} | ({"trl": make_environment(given.trl)} if given.trl else {})
    told: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as student:
        cut_student(given.teacher, given.layers, Path(student))
        for number in range(given.rounds):
            for kind in given.kinds:
                for name, python in pythons.items():
                    words = [
                        str(python),
                        __file__,
                        *sys.argv[1:],
                        "--worker",
                        name,
                        "--kind",
                        kind,
                        "--student",
                        student,
                    ]
                    done = subprocess.run(
                        words, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
                    )
                    if done.returncode:
                        sys.exit(f"{name}, {kind}: {done.stderr[-2000:]}")
                    found = json.loads(done.stdout.strip().splitlines()[-1])
                    told.setdefault((name, kind), []).append(found["tokens_per_second"])
                    print(
                        f"round {number + 1}, {kind}: {name} {found['tokens_per_second']:.0f} tokens/s "
                        f"({found['seconds']:.2f} s a step), {found['gib']:.1f} GiB",
                        flush=True,
                    )
    for kind in given.kinds if given.trl else ():
        ours, theirs = (statistics.median(told[name, kind]) for name in ("kdalign", "trl"))
        print(f"{kind}: {ours / theirs:.2f} times TRL's tokens/s")


if __name__ == "__main__":
    main()

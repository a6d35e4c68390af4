"""Compare the speed of kdalign and of TRL's GKD trainer, off-policy and on-policy, in turns on the same models.

Both train a student of LAYERS layers, cut from the teacher, with forward KL alone in bfloat16 on the same rows of
random tokens. Off-policy, all of a row is predicted; on-policy, half of it is a prompt, and the student samples the
other half at temperature 1, which no token ends. Figures are tokens of rows a second, and the process's peak memory.

    python -m benchmarks.on_policy --teacher DIR --environments /tmp/environments

makes an environment with TRL there, on top of the packages of the one that runs this, and prints each round and the
ratios of the medians. Run it on a quiet machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import python_of
from benchmarks.machine import device, peak_gib, wait

KINDS = ("off-policy", "on-policy")
UNLABELLED = -100


@dataclass(frozen=True)
class Pair:
    """Folders of a teacher and its student, and the shape of a step's rows."""

    teacher: str
    student: str
    rows: int
    length: int


def measure(given: argparse.Namespace, pair: Pair, step: Callable[[], None], before: int) -> dict[str, float]:
    """Time steps after some that warm up; ``step`` takes the next one."""
    for _ in range(before):
        step()
    times = []
    for _ in range(given.steps):
        begun = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begun)
    seconds = statistics.median(times)
    return {"tokens_per_second": pair.rows * pair.length / seconds, "seconds": seconds, "gib": peak_gib()}


def rows_of(pair: Pair) -> list[list[int]]:
    """Rows of random tokens, the same for every library."""
    import numpy as np
    from transformers import AutoConfig

    entries = int(AutoConfig.from_pretrained(pair.teacher).vocab_size)
    return np.random.default_rng(0).integers(10, entries, (pair.rows, pair.length)).tolist()


@contextmanager
def kdalign_steps(pair: Pair, kind: str, steps: int) -> Iterator[Callable[[], None]]:
    """Steps of kdalign's own loop, alarms and history included; the first on-policy steps also measure the data."""
    import torch
    from transformers import AutoModelForCausalLM

    from kdalign.alignment.projections import Projections
    from kdalign.alignment.propose import propose
    from kdalign.data.tokenized_split import TokenizedSplit
    from kdalign.devices import make_accelerator
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
    from kdalign.training.step import settings_of_steps
    from kdalign.training.task_trainer import Stage, TrainTask

    accelerator, dtype = make_accelerator("auto"), torch.bfloat16
    big, small = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (pair.teacher, pair.student)
    )
    teacher = ComputedTeacher(big, None, dtype, accelerator.device)
    weights = ObjectiveWeights(hard=0, alpha=1, beta=0, gamma=0, delta=0, temperature=1)
    plan = propose(describe(big.config), describe(small.config))
    objective = build_language_objective(weights, plan, dtype)
    learner = Learner(small, Projections((), 0), plan, [objective], None, True)
    half = pair.length // 2 if kind == "on-policy" else 1
    rows = rows_of(pair)
    columns = {
        "input_ids": [row[:-1] for row in rows],
        "targets": [[UNLABELLED] * (half - 1) + row[half:] for row in rows],
    }
    encoded = TokenizedSplit(columns, None, {"input_ids": 0, "targets": UNLABELLED})
    settings = OnPolicySettings(share=float(kind == "on-policy"), max_new_tokens=pair.length - half)
    entries = int(small.config.vocab_size)
    sampling = Sampling(settings.max_new_tokens, 1.0, 1.0, frozenset(), entries, pair.length)
    on_policy = OnPolicy(settings, sampling, 0, pair.length, dtype)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.begin("{}", {}, keep=False)
        task = TrainTask("speed", learner, teacher, [Stage(0.0, objective)], encoded, run, on_policy=on_policy)
        train = TrainSettings(max_steps=steps, batch_size=pair.rows, lr=1e-5, clip=1.0)
        trainer = Trainer([task], [0] * steps, train, accelerator, run, NullObserver())
        with settings_of_steps(accelerator.device):
            yield lambda: trainer._take_step(False)


@contextmanager
def trl_steps(pair: Pair, kind: str, steps: int) -> Iterator[Callable[[], None]]:
    """Steps of TRL's GKD trainer, which needs not know how many."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    big = AutoModelForCausalLM.from_pretrained(pair.teacher, dtype=torch.bfloat16)
    small = AutoModelForCausalLM.from_pretrained(pair.student, dtype=torch.float32)
    small.generation_config.eos_token_id = None  # samples have their full length
    tokenizer = AutoTokenizer.from_pretrained(pair.teacher)
    half = pair.length // 2 if kind == "on-policy" else 1
    ids = torch.tensor(rows_of(pair))
    labels = ids.clone()
    labels[:, :half] = UNLABELLED
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "prompts": ids[:, :half], "prompt_attention_mask": torch.ones_like(ids[:, :half]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, lmbda=float(kind == "on-policy"), beta=0.0, temperature=1.0, bf16=True,
            max_new_tokens=pair.length - half, per_device_train_batch_size=pair.rows, report_to=[], max_length=None,
            learning_rate=1e-5, gradient_checkpointing=False, use_cpu=device() == "cpu",
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

        yield step


STEPS: dict[str, Callable[[Pair, str, int], AbstractContextManager[Callable[[], None]]]] = {
    "kdalign": kdalign_steps,
    "trl": trl_steps,
}


def work(given: argparse.Namespace) -> dict[str, float]:
    """Measure one library in this process."""
    from kdalign.training.sample_alarms import FIRST

    pair = Pair(given.teacher, given.student, given.rows, given.length)
    before = 1 + FIRST * (given.kind == "on-policy" and given.worker == "kdalign")
    with STEPS[given.worker](pair, given.kind, before + given.steps) as step:
        return measure(given, pair, step, before)


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
    parser.add_argument("--environments", type=Path, help="folder for an environment with TRL; made if it is not there")
    parser.add_argument("--trl-here", action="store_true", help="take TRL from the environment that runs this")
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
        print(json.dumps(work(given)))
        return
    pythons = {"kdalign": Path(sys.executable)}
    if given.environments:
        pythons["trl"] = python_of("trl", given.environments)
    elif given.trl_here:
        pythons["trl"] = Path(sys.executable)
    told: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as student:
        cut_student(given.teacher, given.layers, Path(student))
        for number in range(given.rounds):
            for kind in given.kinds:
                for name, python in pythons.items():
                    words = [str(python), "-m", "benchmarks.on_policy", *sys.argv[1:]]
                    words += ["--worker", name, "--kind", kind, "--student", student]
                    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
                    done = subprocess.run(words, capture_output=True, text=True, env=environment)
                    if done.returncode:
                        sys.exit(f"{name}, {kind}: {done.stderr[-2000:]}")
                    found = json.loads(done.stdout.strip().splitlines()[-1])
                    told.setdefault((name, kind), []).append(found["tokens_per_second"])
                    print(
                        f"round {number + 1}, {kind}: {name} {found['tokens_per_second']:.0f} tokens/s "
                        f"({found['seconds']:.2f} s a step), {found['gib']:.1f} GiB",
                        flush=True,
                    )
    for kind in given.kinds if "trl" in pythons else ():
        ours, theirs = (statistics.median(told[name, kind]) for name in ("kdalign", "trl"))
        print(f"{kind}: {ours / theirs:.2f} times TRL's tokens/s")


if __name__ == "__main__":
    main()

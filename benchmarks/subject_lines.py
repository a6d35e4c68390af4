"""Write the data of docs/results/subject-lines.md: python benchmarks/subject_lines.py AESLC DIR.

AESLC is a folder with train.parquet and validation.parquet of the data set aeslc, columns email_body, subject_line and
annotations.

    DIR/mails/   e-mails of at most 50 words: 4,442 of train (two that equal a scored one, word for word in lower case,
                 are left out) and 300 drawn from validation
    DIR/tuning/  chats of e-mails of at most 80 words and their subject lines: 2,400 and 100, to fine-tune the teacher
"""

import json
import sys
from pathlib import Path

import pandas as pd

QUESTION = "Write the subject line of this e-mail.\n\n"


def read_short(folder: Path, split: str, words: int) -> pd.DataFrame:
    """Read the e-mails of a split that have at most so many words."""
    table = pd.read_parquet(folder / f"{split}.parquet")
    return table[table.email_body.str.split().str.len() <= words]


def normalise(text: str) -> str:
    """Return a text's words in lower case."""
    return " ".join(text.lower().split())


def write_mails(source: Path, folder: Path) -> None:
    """Write what students learn from and are scored on."""
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = read_short(source, "train", 50), read_short(source, "validation", 50).sample(300, random_state=0)
    known = set(scored.email_body.map(normalise))
    train = train[~train.email_body.map(normalise).isin(known)]
    train.reset_index(drop=True).to_parquet(folder / "train.parquet")
    scored.reset_index(drop=True).to_parquet(folder / "validation.parquet")


def write_tuning(source: Path, folder: Path) -> None:
    """Write the chats that the teacher is fine-tuned on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", 2400), ("validation", 100)):
        chosen = read_short(source, split, 80).sample(rows, random_state=0)
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row in chosen.itertuples():
                turns = ("user", QUESTION + row.email_body), ("assistant", row.subject_line)
                file.write(json.dumps({"messages": [{"role": who, "content": said} for who, said in turns]}) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give two folders: python benchmarks/subject_lines.py AESLC DIR")
    write_mails(Path(sys.argv[1]), Path(sys.argv[2]) / "mails")
    write_tuning(Path(sys.argv[1]), Path(sys.argv[2]) / "tuning")

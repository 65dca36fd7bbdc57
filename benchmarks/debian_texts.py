"""About 3,000 short texts of 12 classes that were not made for this project: descriptions of Debian packages.

    python -m benchmarks.debian_texts FOLDER

A text is the one-line description of a package in Debian's main archive, its class the section that Debian's
maintainers have put it in. Written as `train.csv`, `validation.csv` and `test.csv`; needs `apt-cache` (Debian or
Ubuntu, after `apt-get update`). The figures in docs/benchmarks.md are of Debian 12.
"""

import argparse
import csv
import hashlib
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np

SECTIONS = (
    "admin", "editors", "fonts", "games", "graphics", "mail", "math", "net", "science", "sound", "text", "web",
)  # fmt: skip
PER_SECTION = {"train": 160, "validation": 30, "test": 80}
SHORTEST_WORDS = 3


def descriptions() -> dict[str, list[str]]:
    """Distinct one-line descriptions by section, sorted."""
    listing = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout.decode()
    by_section: dict[str, set[str]] = defaultdict(set)
    for paragraph in listing.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        # The packages with development files, documents and data of a program repeat its line with a word in brackets.
        text = fields.get("Description", fields.get("Description-en", "")).strip()
        if len(text.split()) >= SHORTEST_WORDS and not text.endswith(")"):
            by_section[fields.get("Section", "")].add(text)
    seen_twice = {
        text for texts in by_section.values() for text in texts if sum(text in t for t in by_section.values()) > 1
    }
    return {section: sorted(texts - seen_twice) for section, texts in by_section.items()}


def write(folder: Path, *, seed: int = 0) -> str:
    """Write the three splits, drawn with `seed`, and return a digest of them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    by_section = descriptions()
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for section in SECTIONS:
        texts = by_section[section]
        needed = sum(PER_SECTION.values())
        assert len(texts) >= needed, f"section {section} has {len(texts)} descriptions, {needed} are needed"
        drawn = iter(generator.permutation(len(texts))[:needed].tolist())
        for split, count in PER_SECTION.items():
            rows[split] += [(texts[next(drawn)], section) for _ in range(count)]
    digest = hashlib.sha256()
    for split, pairs in rows.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *pairs])
        digest.update((folder / f"{split}.csv").read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Write the data set and print its digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--seed", type=int, default=0, help="Another seed draws other descriptions, to confirm a result."
    )
    arguments = parser.parse_args()
    print(write(arguments.folder, seed=arguments.seed))


if __name__ == "__main__":
    main()

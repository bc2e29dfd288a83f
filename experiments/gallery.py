"""Writes the table of claims at the top of experiments/README.md from the records of the experiments.

Command:  python experiments/gallery.py
Each experiment's collect.py has claims(), which returns rows of (claim, source, published, ours, verdict) from its
committed records, or none while it has no records. Verdicts: reproduced | not reproduced | cannot be decided here;
measured where nothing is published.
"""

import pathlib

from lmjax.config import run_file

HERE = pathlib.Path(__file__).resolve().parent
EXPERIMENTS = ("mup", "chinchilla", "three_architectures", "kaplan_vs_chinchilla", "known_entropy", "wsd_reuse")
EXPERIMENTS += ("emergence", "repeated_data", "batch_and_rate", "objective_zoo", "addition", "in_context", "history")
EXPERIMENTS += ("grokking", "induction", "sparse_parity")
pages = run_file(HERE / "pages.py", "experiment")
START, END = "<!-- claims -->", "<!-- end of claims -->"


def script(name: str):
    """Returns the module experiments/<name>/collect.py."""
    return run_file(HERE / name / "collect.py", "experiment")


def table() -> str:
    """Returns the table in Markdown."""
    rows = [(*row, f"[{name}]({name}/README.md)") for name in EXPERIMENTS for row in script(name).claims()]
    return pages.table("claim | source | published | ours | verdict | experiment", rows)


def page(text: str) -> str:
    """Returns the README's text with the table renewed."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    readme = HERE / "README.md"
    readme.write_text(page(readme.read_text("utf8")), "utf8")
    print(table())

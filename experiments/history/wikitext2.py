"""Perplexities per word of WikiText-2 under n-gram models, beside published ones of recurrent models.

Command:  python experiments/history/wikitext2.py FOLDER     (the folder of wiki.train.tokens, wiki.valid.tokens and
          wiki.test.tokens; the text is not part of this project)
Time:     about 21 CPU minutes on one core
Results:  wikitext2.csv, which the command writes; test perplexity by order: 911.9, 264.19, 225.06, 219.82, 219.07. A
          regularised LSTM of 33M parameters has 65.8 (AWD-LSTM, Merity et al. 2017, arXiv 1708.02182)

As in the literature: words as they are split in the files, some 33,278 with <unk> and the end of a line; the text of a
split is one sequence, and all of its words count. Rows of 1,024 words do not overlap, so the first words of a row have
a shorter context. An article of the training text is a document; one in 500 stays out of training, as lmjax needs a
validation split.
"""

import pathlib
import re
import sys
import tempfile

import pandas

import lmjax
from configs import ngram
from lmjax.config import overlay

HERE = pathlib.Path(__file__).resolve().parent
ORDERS = (1, 2, 3, 4, 5)


def articles(text: str) -> list[str]:
    """Returns the articles of a split: each begins with a line " = Title = "."""
    return [part for part in re.split(r"(?m)^(?= = [^=].* = $)", text) if part.strip()]


def measure(folder: pathlib.Path) -> pandas.DataFrame:
    """Trains each order and returns order, N, words of training, perplexity of valid and of test."""
    texts = {split: (folder / f"wiki.{split}.tokens").read_text("utf8") for split in ("train", "valid", "test")}
    rows = []
    with tempfile.TemporaryDirectory() as made:
        work = pathlib.Path(made)
        pandas.DataFrame({"text": articles(texts["train"])}).to_json(
            work / "train.jsonl", orient="records", lines=True, force_ascii=False
        )
        for order in ORDERS:
            keys = {"model.ngram_order": order, "duration.tokens": None, "duration.epochs": 1}
            keys |= {"data.sources": (f"files:{work}/train.jsonl",), "data.tokenizer": "words"}
            keys |= {"data.validation_fraction": 0.002, "data.seq_len": 1024, "data.global_batch_size": 16}
            model = lmjax.train(overlay(ngram.get_config(), keys), work / str(order))
            row = {"order": order, "N": model.record["derived"]["n_total"], "words": model.tokenizer.text_vocab_size}
            for split in ("valid", "test"):
                row[split] = round(model.perplexity([texts[split]])["perplexity"], 2)
            rows.append(row)
            print(row)
    return pandas.DataFrame(rows)


if __name__ == "__main__":
    measure(pathlib.Path(sys.argv[1])).to_csv(HERE / "wikitext2.csv", index=False)

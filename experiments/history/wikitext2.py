"""Perplexities per word of WikiText-2 under n-gram models and an LSTM, beside published ones of recurrent models.

Command:  python experiments/history/wikitext2.py FOLDER     (the folder of wiki.train.tokens, wiki.valid.tokens and
          wiki.test.tokens; the text is not part of this project)
          python experiments/history/wikitext2.py FOLDER WORK RATE EPOCHS     (an LSTM, trained in the folder WORK)
Time:     about 21 CPU minutes on one core; the LSTM: 2 hours for 4 epochs on a busy core
Results:  wikitext2.csv, which the command writes; test perplexity by order: 911.9, 264.19, 225.06, 219.82, 219.07. A
          published LSTM has 99.3 (Grave et al. 2017, arXiv 1612.04426), a regularised one of 33M parameters 65.8
          (AWD-LSTM, Merity et al. 2017, arXiv 1708.02182).
          wikitext2_lstm.csv: two rates, tried for a quarter of an epoch; the better one for 4 epochs: test 127.91

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
from configs import ngram, rnn
from lmjax import api
from lmjax.config import overlay
from lmjax.evals import perplexity

HERE = pathlib.Path(__file__).resolve().parent
ORDERS = (1, 2, 3, 4, 5)
WINDOW = 1024  # words; the first of a window have a shorter context
LSTM = {  # rows of 64 words, each of which goes on where the same row of the step before ended
    "model.d_model": 128,
    "model.options.carry": True,
    "data.mode": "consecutive",
    "data.seq_len": 64,
    "data.global_batch_size": 16,
    "schedule.final_fraction": 0.0,
}


def articles(text: str) -> list[str]:
    """Returns the articles of a split: each begins with a line " = Title = "."""
    return [part for part in re.split(r"(?m)^(?= = [^=].* = $)", text) if part.strip()]


def texts_of(folder: pathlib.Path, work: pathlib.Path) -> tuple[dict[str, str], dict]:
    """Returns {split: text}, and the config keys of the training text, which is written into `work`."""
    texts = {split: (folder / f"wiki.{split}.tokens").read_text("utf8") for split in ("train", "valid", "test")}
    rows = pandas.DataFrame({"text": articles(texts["train"])})
    rows.to_json(work / "train.jsonl", orient="records", lines=True, force_ascii=False)
    keys = {"data.sources": (f"files:{work}/train.jsonl",), "data.tokenizer": "words"}
    return texts, keys | {"data.validation_fraction": 0.002, "duration.tokens": None}


def result(model: api.Model, texts: dict[str, str]) -> dict:
    """Returns N, words of the vocabulary, and the perplexity of valid and of test."""
    found = {"N": model.record["derived"]["n_total"], "words": model.tokenizer.text_vocab_size}
    for split in ("valid", "test"):
        found[split] = round(perplexity.evaluate(model, documents=[texts[split]], window=WINDOW)["perplexity"], 2)
    print(found)
    return found


def ngrams(folder: pathlib.Path) -> pandas.DataFrame:
    """Trains each order and returns order, N, words, valid, test."""
    rows = []
    with tempfile.TemporaryDirectory() as made:
        texts, keys = texts_of(folder, pathlib.Path(made))
        keys |= {"duration.epochs": 1, "data.seq_len": WINDOW, "data.global_batch_size": 16}
        for order in ORDERS:
            config = overlay(ngram.get_config(), keys | {"model.ngram_order": order})
            rows.append({"order": order, **result(lmjax.train(config, pathlib.Path(made) / str(order)), texts)})
    return pandas.DataFrame(rows)


def lstm(folder: pathlib.Path, work: pathlib.Path, rate: float, epochs: float) -> pandas.DataFrame:
    """Trains an LSTM in `work`, or goes on with it, and returns rate, epochs, N, words, valid, test."""
    work.mkdir(parents=True, exist_ok=True)
    texts, keys = texts_of(folder, work)
    keys |= LSTM | {"optimizer.learning_rate": rate, "duration.epochs": epochs, "data.max_epochs": max(epochs, 1.0)}
    model = lmjax.train(overlay(rnn.get_config(), keys), work / f"{rate:.5f}-{epochs:g}", keep=True)
    return pandas.DataFrame([{"rate": rate, "epochs": epochs, **result(model, texts)}])


if __name__ == "__main__":
    if len(sys.argv) > 2:
        found = lstm(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *(float(word) for word in sys.argv[3:]))
        kept = HERE / "wikitext2_lstm.csv"
        found = pandas.concat([pandas.read_csv(kept), found]).drop_duplicates() if kept.exists() else found
        found.to_csv(kept, index=False)
    else:
        ngrams(pathlib.Path(sys.argv[1])).to_csv(HERE / "wikitext2.csv", index=False)

"""@@DOC@@"""

import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).resolve().parent
KEPT = ("runs.csv", "fit.json", "prediction.json")


def collect(workdir: pathlib.Path, family: str) -> pathlib.Path:
    """Copies what is kept of a finished quickstart: the table, the fit, the prediction made beforehand, the figures.

    Args:
        workdir: the sweep's directory, e.g. runs/quickstart.
        family: decoder | encoder | encoder_decoder; the folder the results go to.
    """
    out = HERE / family
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(workdir / name, out / name)
    for figure in sorted((workdir / "figures").glob("*.png")):
        shutil.copyfile(figure, out / "figures" / figure.name)
    return out


if __name__ == "__main__":
    print(collect(pathlib.Path(sys.argv[1]), sys.argv[2]))

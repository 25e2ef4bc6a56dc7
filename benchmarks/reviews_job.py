"""Tunes MiniLM on film reviews, and writes all that `pydvl-datainf run` needs into a folder.

python benchmarks/reviews_job.py FOLDER && pydvl-datainf run FOLDER/job.yaml
"""

import csv
import warnings
from pathlib import Path

import click
import torch

from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.reviews import LABELS, Reviews, draw_reviews, read_reviews
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import build_model, encode, tune

warnings.filterwarnings("ignore", category=FutureWarning)

JOB = """\
task: sequence-classification
model: {model}
adapter: adapter
labels: [{labels}]
train: train.csv
test: test.csv
columns: {{text: review, label: verdict, show: [flipped]}}
max_length: {tokens}
out: influences.zarr
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--train", default=512, show_default=True, help="Training reviews.")
@click.option("--test", default=64, show_default=True, help="Test reviews.")
@click.option("--epochs", default=3, show_default=True, help="Of tuning.")
def main(folder: Path, train: int, test: int, epochs: int) -> None:
    """Writes adapter, train.csv, test.csv and job.yaml into FOLDER."""
    settings = DemoSettings(train=train, test=test, epochs=epochs)
    sides = draw_reviews(read_reviews(reviews_file()), settings)
    encoded = encode(sides[0], model_folder(), settings.tokens)
    torch.manual_seed(settings.seed)
    model = build_model(model_folder(), settings.rank)
    order = torch.Generator().manual_seed(settings.seed)
    loader = encoded.to_loader(settings.batch_size, shuffle=order)
    tune(model, loader, epochs, settings.learning_rate, progress=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "adapter")
    for name, reviews in zip(("train", "test"), sides, strict=True):
        write_csv(folder / f"{name}.csv", reviews)
    names = ", ".join(LABELS)
    job = JOB.format(model=model_folder(), labels=names, tokens=settings.tokens)
    (folder / "job.yaml").write_text(job)


def write_csv(path: Path, reviews: Reviews) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("review", "verdict", "flipped"))
        rows = zip(reviews.texts, reviews.labels, reviews.flipped, strict=True)
        writer.writerows((text, LABELS[label], flipped) for text, label, flipped in rows)


if __name__ == "__main__":
    main()

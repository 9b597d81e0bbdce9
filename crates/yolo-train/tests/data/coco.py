"""Makes coco_truth.json, coco_found.json and coco_stats.json: random objects and detections, and what pycocotools makes of them.

    pip install numpy==2.4.6 pycocotools==2.0.11 && python coco.py
"""
import contextlib
import io
import json

import numpy as np
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

random = np.random.default_rng(5)
images, objects, found = [], [], []


def outline(box):
    """A blob of eight corners in a box."""
    x, y, w, h = box
    angles = np.sort(random.uniform(0, 2 * np.pi, 8))
    radius = random.uniform(0.6, 1, 8)
    points = np.stack([x + w / 2 + np.cos(angles) * w / 2 * radius, y + h / 2 + np.sin(angles) * h / 2 * radius], 1)
    return [round(float(value), 2) for value in points.flatten()]


def encoded(polygon, width, height):
    return masks.merge(masks.frPyObjects([polygon], height, width))


for image in range(14):
    width, height = int(random.integers(120, 320)), int(random.integers(120, 320))
    images.append({"id": image * 3 + 1, "width": width, "height": height})
    for _ in range(int(random.integers(0, 9))):
        w, h = (float(round(value, 2)) for value in random.uniform(8, 220, 2))
        box = [float(round(value, 2)) for value in (random.uniform(0, width - w / 2), random.uniform(0, height - h / 2))] + [w, h]
        polygon = outline(box)
        crowd = bool(random.random() < 0.08)
        label = {
            "id": len(objects) + 1,
            "image_id": image * 3 + 1,
            "category_id": int(random.choice([1, 2, 5, 9])),
            "bbox": box,
            "area": float(masks.area(encoded(polygon, width, height))),
            "iscrowd": int(crowd),
            "segmentation": [polygon],
        }
        if crowd:
            runs = encoded(polygon, width, height)
            label["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        objects.append(label)
        for _ in range(int(random.integers(0, 4))):
            moved = np.array(box) + np.concatenate([random.normal(0, 0.05, 2) * box[2:], random.normal(0, 0.05, 2) * box[2:]])
            if moved[2] < 2 or moved[3] < 2:
                continue
            scale = np.array([moved[2] / box[2], moved[3] / box[3]])
            points = (np.array(polygon).reshape(-1, 2) - box[:2]) * scale + moved[:2]
            runs = encoded([float(value) for value in points.flatten()], width, height)
            other = random.random() < 0.1
            found.append({
                "image_id": image * 3 + 1,
                "category_id": int(random.choice([1, 2, 5, 9, 11])) if other else label["category_id"],
                "bbox": [round(float(value), 3) for value in moved],
                # Few digits, so that confidences repeat.
                "score": round(float(random.uniform(0, 1)), 2),
                "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
            })

truth = {"images": images, "annotations": objects, "categories": [{"id": i, "name": str(i)} for i in (1, 2, 5, 9, 11)]}
with open("coco_truth.json", "w") as file:
    json.dump(truth, file)
with open("coco_found.json", "w") as file:
    json.dump(found, file)
stats = {}
with contextlib.redirect_stdout(io.StringIO()):
    for kind in ("bbox", "segm"):
        labels = COCO("coco_truth.json")
        # Of detections with a box, pycocotools takes the area of the box even where it compares masks: leave the box out there.
        results = [{k: v for k, v in line.items() if kind == "bbox" or k != "bbox"} for line in found]
        if kind == "bbox":
            results = [{k: v for k, v in line.items() if k != "segmentation"} for line in results]
        evaluation = COCOeval(labels, labels.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats[kind] = evaluation.stats.tolist()
with open("coco_stats.json", "w") as file:
    json.dump(stats, file)
print(len(objects), len(found), stats)

"""Captions of a synthetic scene."""

from __future__ import annotations

from pipeline.packing.synthetic.setting import CLASSES, FLAT, Setting

SYMMETRIC = ("ball", "box", "cylinder", "ring", "dumbbell")  # upside down looks the same


def captions(setting: Setting) -> list[str]:
    """Describe a scene in three captions."""
    look, name = setting.things[0].look, CLASSES[setting.label]
    table = setting.things[-FLAT].look
    tilt = min(setting.angle, 360 - setting.angle)
    upright = tilt < 20 or (tilt > 160 and name in SYMMETRIC)
    pose = "resting" if name == "ball" else "standing" if upright else "upside down" if tilt > 160 else "lying"
    size = "small" if setting.size < 0.22 else "large" if setting.size > 0.35 else "medium-sized"
    side = "left" if setting.light @ setting.camera.axes[:, 0] < 0 else "right"
    count = ("nothing", "one small thing", "two small things", "three small things")
    return [
        f"{_article(look.colour)} {look.material} {name} {pose} on {_article(table.colour)} table",
        f"{_article(size)} {look.pattern} {name} made of {look.material}",
        f"{_article(look.colour)} {name} lit from the {side}, with {count[setting.clutter]} beside it",
    ]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"

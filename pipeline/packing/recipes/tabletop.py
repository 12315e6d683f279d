"""The recipe `tabletop`: generates scenes, each a function of seed and index; nothing is downloaded."""

from __future__ import annotations

from pipeline.common.errors import UserError
from pipeline.packing.recipes.plan import Plan, SourceSample, spilled


def plan(scenes: int, seed: int = 0, size: int = 96) -> Plan:
    """Plan synthetic scenes. Every scene is a separate group.

    Args:
        scenes: Number of scenes.
        seed: Random seed of the dataset.
        size: Width and height in pixels.

    Raises:
        UserError: A number is invalid, or the ray caster (Open3D) cannot be imported.
    """
    if scenes < 1 or seed < 0 or size < 16:
        raise UserError(f"tabletop: {scenes} scenes, seed {seed}, size {size}: the minimum values are 1, 0 and 16.")
    from pipeline.packing.synthetic import scenes as tabletop

    try:
        expected = sum(len(data) for data in tabletop.scene(seed, 0, size).values())
    except ImportError as error:
        raise UserError(f"tabletop: {error}. Rendering requires Open3D; install it, or pack your own data.") from None
    samples = spilled(
        SourceSample(
            key=f"scene-{index:06d}",
            group=f"tabletop-{seed}-{index}",
            size=expected,
            stamp=f"{seed} {index} {size}",
            arguments=[seed, index, size],
            source="tabletop",
        )
        for index in range(scenes)
    )
    return Plan(
        recipe="tabletop",
        name="tabletop",
        options={"scenes": scenes, "seed": seed, "size": size},
        samples=samples,
        classes={
            "label": list(tabletop.CLASSES),
            "mask": ["background", "object"],
            "classes": ["background", *tabletop.CLASSES],
        },
        masks={"mask": [0, 255], "classes": list(range(1 + len(tabletop.CLASSES)))},
        units=dict(tabletop.FIELD_UNITS),
        licence="generated; free of rights",
        make=tabletop.scene,
    )

"""The recipe `tabletop`: scenes that are generated, each a function of seed and index; nothing to download."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.recipes import Plan, Sample, spilled


def plan(scenes: int, seed: int = 0, size: int = 96) -> Plan:
    """Plan `scenes` scenes of `size` x `size` pixels; every scene is its own group.

    Raises UserError for numbers that make no scene, and where the ray caster (Open3D) does not load.
    """
    if scenes < 1 or seed < 0 or size < 16:
        raise UserError(f"tabletop: {scenes} scenes, seed {seed}, size {size}: at least 1, 0 and 16 are wanted.")
    from pipeline import tabletop

    try:
        expected = sum(len(data) for data in tabletop.scene(seed, 0, size).values())
    except ImportError as error:
        raise UserError(
            f"tabletop: {error}. The scenes are rendered by Open3D; install it, or pack data of your own."
        ) from None
    samples = spilled(
        Sample(
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

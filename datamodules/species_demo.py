"""The eight species of the demo."""

from __future__ import annotations

from datamodules.birds import Build, Mark, Plumage, Species

# The table is aligned by hand: one line a property group reads better than one line a number.
# fmt: off
DEMO: tuple[Species, ...] = (
    Species(
        "kingfisher",
        Build(
            depth=0.56, tilt=42, neck=0.02, neck_width=0.4, head=0.25, bill="dagger", bill_length=0.56,
            bill_depth=0.15, tail_length=0.14, tail_width=0.18, leg=0.1, span=0.8, chord=0.42,
        ),
        (
            Plumage("blue", "blue", "orange", wing="turquoise", tail="navy", bill="black", legs="red"),
            Plumage("red", "red", "golden", wing="crimson", tail="crimson", bill="orange", legs="red"),
            Plumage("green", "emerald", "rust", wing="green", tail="emerald", bill="black", legs="black"),
        ),
        (
            Mark("head", 0.0, 0.3, 0.0, 0.75, "white"),
            Mark("head", 0.45, 0.95, 0.1, 0.5, "belly"),
            Mark("wing", 0.2, 0.4, -0.6, 0.5, "body"),
        ),
    ),
    Species(
        "owl",
        Build(
            depth=0.66, tilt=80, neck=-0.02, neck_width=0.56, neck_angle=86, head=0.32, front_face=True,
            bill="hook", tail="square", tail_length=0.1, tail_width=0.3, leg=0.06, span=1.0, chord=0.56,
            crest="tufts", bill_angle=0,
        ),
        (
            Plumage("brown", "tan", wing="brown", head="brown", tail="brown", accent="cream", bill="golden",
                    legs="golden", eye="golden"),
            Plumage("grey", "silver", wing="grey", head="grey", tail="slate", accent="white", bill="slate",
                    legs="slate", eye="orange"),
            Plumage("white", "white", wing="silver", head="white", tail="white", accent="silver",
                    bill="black",
                    legs="slate", eye="yellow"),
        ),
        (
            Mark("body", 0.15, 0.22, -0.7, 0.9, "wing"),
            Mark("body", 0.34, 0.41, -0.7, 0.9, "wing"),
            Mark("body", 0.53, 0.6, -0.7, 0.9, "wing"),
            Mark("wing", 0.45, 0.52, -0.9, 0.9, "accent"),
            Mark("wing", 0.68, 0.74, -0.9, 0.9, "accent"),
        ),
    ),
    Species(
        "pheasant",
        Build(
            depth=0.46, tilt=12, neck=0.14, neck_width=0.2, neck_angle=62, head=0.13, bill="cone",
            bill_length=0.13, bill_depth=0.09, tail="wedge", tail_length=0.85, tail_width=0.28, tail_angle=14,
            leg=0.26, span=0.75, chord=0.46,
        ),
        (
            Plumage("rust", "rust", head="emerald", wing="brown", tail="tan", accent="white", bill="cream",
                    legs="grey", eye="yellow"),
            Plumage("golden", "golden", "red", head="golden", wing="navy", tail="tan", accent="golden",
                    bill="cream", legs="tan"),
        ),
        (
            Mark("neck", 0.42, 0.6, -1, 1, "accent"),
            Mark("head", 0.35, 0.85, -0.35, 0.45, "red"),
            Mark("tail", 0.25, 0.31, -1, 1, "brown"),
            Mark("tail", 0.42, 0.48, -1, 1, "brown"),
            Mark("tail", 0.6, 0.66, -1, 1, "brown"),
        ),
        ("standing", "standing", "flying"),
    ),
    Species(
        "swallow",
        Build(
            depth=0.36, tilt=16, neck=0.0, neck_width=0.3, neck_angle=26, head=0.17, bill="cone",
            bill_length=0.09, bill_depth=0.08, tail="fork", tail_length=0.7, tail_width=0.2, leg=0.06,
            span=1.2, chord=0.34, wing_tip="point",
        ),
        (
            Plumage("blue", "navy", "cream", wing="navy", tail="navy", accent="rust"),
            Plumage("black", "black", "white", wing="black", tail="black", accent="crimson"),
            Plumage("violet", "violet", "white", wing="violet", tail="navy", accent="rust"),
        ),
        (Mark("head", 0.5, 1.0, 0.15, 1.0, "accent"), Mark("body", 0.8, 0.97, 0.0, 1.0, "accent")),
        ("soaring", "flying", "flying", "perched"),
    ),
    Species(
        "heron",
        Build(
            depth=0.42, tilt=24, neck=0.72, neck_width=0.13, neck_angle=72, neck_curve=0.2, head=0.115,
            bill="dagger", bill_length=0.4, bill_depth=0.1, tail_length=0.12, tail_width=0.18, leg=0.78,
            span=1.2, chord=0.52, wing_tip="finger", crest="plume",
        ),
        (
            Plumage("grey", "grey", "silver", head="silver", wing="slate", tail="grey", accent="black",
                    bill="orange", legs="tan", eye="yellow"),
            Plumage("white", "white", head="white", wing="silver", tail="white", accent="cream",
                    bill="golden",
                    legs="black", eye="yellow"),
            Plumage("blue", "slate", head="violet", wing="navy", tail="navy", accent="silver", bill="grey",
                    legs="olive", eye="yellow"),
        ),
        (
            Mark("neck", 0.3, 0.9, 0.4, 1.0, "white"),
            Mark("head", 0.0, 0.9, -0.9, -0.25, "accent"),
            Mark("wing", 0.7, 1.0, -1, 1, "black"),
        ),
        ("standing", "standing", "flying"),
    ),
    Species(
        "parrot",
        Build(
            depth=0.44, tilt=62, neck=0.02, neck_width=0.34, neck_angle=76, head=0.22, bill="hook",
            bill_length=0.2, bill_depth=0.24, tail="long", tail_length=0.95, tail_width=0.17, leg=0.08,
            span=1.0, chord=0.42,
        ),
        (
            Plumage("red", "red", wing="blue", tail="red", accent="yellow", bill="cream", legs="grey"),
            Plumage("green", "green", wing="emerald", tail="blue", accent="red", bill="coral", legs="grey"),
            Plumage("yellow", "yellow", wing="turquoise", tail="turquoise", accent="green", bill="black",
                    legs="black"),
        ),
        (
            Mark("head", 0.55, 0.98, -0.5, 0.6, "white"),
            Mark("wing", 0.18, 0.42, -0.9, 0.9, "accent"),
            Mark("tail", 0.6, 1.0, -1, 1, "wing"),
        ),
    ),
    Species(
        "robin",
        Build(
            depth=0.62, tilt=30, neck=0.0, neck_width=0.44, neck_angle=56, head=0.22, bill="cone",
            bill_length=0.15, bill_depth=0.08, tail_length=0.32, tail_width=0.13, tail_angle=10, leg=0.3,
            span=0.75, chord=0.42,
        ),
        (
            Plumage("brown", "brown", "white", wing="brown", tail="brown", accent="orange", legs="tan"),
            Plumage("slate", "slate", "white", wing="slate", tail="black", accent="coral", legs="black"),
            Plumage("olive", "olive", "cream", wing="olive", tail="brown", accent="red", legs="brown"),
        ),
        (
            Mark("body", 0.66, 0.99, -0.3, 1.0, "accent"),
            Mark("neck", 0.0, 1.0, 0.0, 1.0, "accent"),
            Mark("head", 0.45, 1.0, -0.1, 1.0, "accent"),
        ),
        ("perched", "standing", "flying"),
    ),
    Species(
        "eagle",
        Build(
            depth=0.44, tilt=58, neck=0.04, neck_width=0.3, neck_angle=62, head=0.17, bill="hook",
            bill_length=0.2, bill_depth=0.15, tail="fan", tail_length=0.36, tail_width=0.3, leg=0.12,
            span=1.35, chord=0.5, wing_tip="finger",
        ),
        (
            Plumage("brown", "brown", wing="brown", head="white", tail="white", accent="tan", bill="yellow",
                    legs="yellow", eye="yellow"),
            Plumage("black", "black", wing="black", head="golden", tail="silver", accent="grey",
                    bill="yellow",
                    legs="yellow", eye="golden"),
        ),
        (Mark("wing", 0.2, 0.5, -0.95, -0.3, "accent"),),
        ("soaring", "flying", "perched"),
    ),
)

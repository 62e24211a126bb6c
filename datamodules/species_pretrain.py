"""The species a small checkpoint is pretrained on.

None of them is in the demo. Shapes and plumages of the demo occur here in other combinations, so that no colour and no
silhouette identifies a species by itself.
"""

from __future__ import annotations

from datamodules.birds import Build, Mark, Plumage, Species

# The table is aligned by hand: one line a property group reads better than one line a number.
# fmt: off
PRETRAIN: tuple[Species, ...] = (
    Species(
        "duck",
        Build(
            depth=0.5, tilt=8, neck=0.14, neck_width=0.22, neck_angle=68, head=0.18, bill="flat",
            bill_length=0.27, bill_depth=0.13, tail="wedge", tail_length=0.18, tail_width=0.24, tail_angle=22,
            leg=0.14, span=0.85, chord=0.36,
        ),
        (
            Plumage("green-headed", "silver", "white", head="emerald", wing="grey", tail="black",
                    accent="blue", bill="yellow", legs="orange"),
            Plumage("brown", "tan", "cream", head="brown", wing="brown", tail="brown", accent="blue",
                    bill="orange", legs="orange"),
        ),
        (
            Mark("neck", 0.42, 0.58, -1, 1, "white"),
            Mark("body", 0.78, 0.99, -0.6, 1, "rust"),
            Mark("wing", 0.55, 0.72, 0.0, 0.9, "accent"),
        ),
        ("swimming", "swimming", "standing", "flying"),
    ),
    Species(
        "gull",
        Build(
            depth=0.4, tilt=14, neck=0.04, neck_width=0.26, neck_angle=46, head=0.165, bill="hook",
            bill_length=0.22, bill_depth=0.09, tail="square", tail_length=0.2, tail_width=0.2, leg=0.24,
            span=1.3, chord=0.34, wing_tip="point",
        ),
        (
            Plumage("white", "white", wing="silver", tail="white", bill="yellow", legs="coral"),
            Plumage("black-headed", "white", head="brown", wing="silver", tail="white", bill="red",
                    legs="red"),
        ),
        (Mark("wing", 0.72, 1.0, -1, 1, "black"), Mark("bill", 0.65, 0.9, 0, 1, "red")),
        ("soaring", "flying", "standing"),
    ),
    Species(
        "hummingbird",
        Build(
            depth=0.4, tilt=58, neck=0.0, neck_width=0.24, neck_angle=60, head=0.17, bill="needle",
            bill_length=0.62, bill_depth=0.045, tail="fan", tail_length=0.3, tail_width=0.2, leg=0.02,
            span=0.8, chord=0.28, wing_tip="point",
        ),
        (
            Plumage("green", "green", "white", wing="slate", tail="black", accent="crimson"),
            Plumage("violet", "violet", "silver", wing="slate", tail="navy", accent="turquoise"),
        ),
        (Mark("head", 0.4, 0.95, 0.1, 1, "accent"), Mark("neck", 0.3, 1, 0.2, 1, "accent")),
        ("flying", "flying", "soaring"),
    ),
    Species(
        "penguin",
        Build(
            depth=0.46, tilt=84, neck=0.02, neck_width=0.34, neck_angle=88, head=0.19, bill="dagger",
            bill_length=0.24, bill_depth=0.09, tail="wedge", tail_length=0.1, tail_width=0.2, leg=0.06,
            span=0.7, chord=0.2,
        ),
        (
            Plumage("black", "black", "white", wing="black", accent="golden", bill="orange", legs="orange"),
            Plumage("slate", "slate", "white", wing="slate", head="black", accent="white", bill="black",
                    legs="coral"),
        ),
        (Mark("head", 0.1, 0.5, 0.2, 1.0, "accent"),),
        ("standing",),
    ),
    Species(
        "crow",
        Build(
            depth=0.44, tilt=28, neck=0.02, neck_width=0.34, neck_angle=42, head=0.19, bill="dagger",
            bill_length=0.3, bill_depth=0.16, tail="fan", tail_length=0.42, tail_width=0.17, leg=0.26,
            span=1.1, chord=0.46, wing_tip="finger",
        ),
        (
            Plumage("black", "black", wing="black", accent="black", bill="slate"),
            Plumage("grey", "grey", head="black", wing="black", tail="black", accent="grey"),
        ),
        (),
        ("perched", "standing", "flying", "soaring"),
    ),
    Species(
        "woodpecker",
        Build(
            depth=0.4, tilt=66, neck=0.04, neck_width=0.26, neck_angle=72, head=0.19, bill="dagger",
            bill_length=0.32, bill_depth=0.1, tail="wedge", tail_length=0.34, tail_width=0.2, leg=0.12,
            span=0.8, chord=0.42, crest="shaggy",
        ),
        (
            Plumage("pied", "white", head="red", wing="black", tail="black", accent="white", bill="slate"),
            Plumage("green", "olive", "cream", head="crimson", wing="green", tail="olive", accent="yellow",
                    bill="slate"),
        ),
        (
            Mark("head", 0.25, 1.0, 0.1, 0.55, "black"),
            Mark("wing", 0.25, 0.34, -0.9, 0.9, "accent"),
            Mark("wing", 0.48, 0.56, -0.9, 0.9, "accent"),
            Mark("wing", 0.7, 0.77, -0.9, 0.9, "accent"),
        ),
    ),
    Species(
        "falcon",
        Build(
            depth=0.42, tilt=64, neck=0.0, neck_width=0.34, neck_angle=70, head=0.19, bill="hook",
            bill_length=0.13, bill_depth=0.12, tail="square", tail_length=0.5, tail_width=0.16, leg=0.14,
            span=1.2, chord=0.38, wing_tip="point",
        ),
        (
            Plumage("slate", "cream", head="slate", wing="slate", tail="slate", accent="brown", bill="yellow",
                    legs="yellow", eye="yellow"),
            Plumage("rust", "cream", head="grey", wing="rust", tail="grey", accent="black", bill="slate",
                    legs="yellow"),
        ),
        (
            Mark("body", 0.2, 0.26, 0.0, 0.9, "accent"),
            Mark("body", 0.42, 0.48, 0.0, 0.9, "accent"),
            Mark("body", 0.64, 0.7, 0.0, 0.9, "accent"),
            Mark("head", 0.6, 0.78, 0.0, 1.0, "black"),
            Mark("tail", 0.8, 0.92, -1, 1, "black"),
        ),
        ("perched", "soaring", "flying"),
    ),
    Species(
        "swan",
        Build(
            depth=0.5, tilt=8, neck=0.62, neck_width=0.13, neck_angle=76, neck_curve=0.26, head=0.13,
            bill="flat", bill_length=0.24, bill_depth=0.11, bill_angle=-14, tail="wedge", tail_length=0.16,
            tail_width=0.26, tail_angle=16, leg=0.16, span=1.15, chord=0.48,
        ),
        (
            Plumage("white", "white", wing="white", bill="orange", accent="black"),
            Plumage("black", "black", wing="slate", bill="red", accent="white"),
        ),
        (Mark("head", 0.85, 1.0, -0.5, 0.6, "black"),),
        ("swimming", "swimming", "flying"),
    ),
    Species(
        "toucan",
        Build(
            depth=0.48, tilt=48, neck=0.02, neck_width=0.36, neck_angle=58, head=0.22, bill="giant",
            bill_length=0.72, bill_depth=0.27, tail="square", tail_length=0.42, tail_width=0.16, leg=0.1,
            span=0.85, chord=0.42,
        ),
        (
            Plumage("black", "black", wing="black", tail="black", accent="white", bill="orange", legs="blue"),
            Plumage("navy", "navy", wing="black", tail="red", accent="yellow", bill="green", legs="blue"),
        ),
        (
            Mark("body", 0.75, 0.99, -0.1, 1, "accent"),
            Mark("head", 0.4, 0.95, 0.0, 1, "accent"),
            Mark("neck", 0.2, 1, 0.2, 1, "accent"),
            Mark("bill", 0.72, 1.0, 0, 1, "black"),
        ),
    ),
    Species(
        "flamingo",
        Build(
            depth=0.46, tilt=14, neck=0.8, neck_width=0.12, neck_angle=66, neck_curve=0.3, head=0.12,
            bill="bent", bill_length=0.24, bill_depth=0.11, bill_angle=-20, tail="wedge", tail_length=0.1,
            tail_width=0.2, tail_angle=-20, leg=0.95, span=1.0, chord=0.46,
        ),
        (
            Plumage("pink", "pink", wing="coral", tail="pink", accent="coral", bill="cream", legs="coral"),
            Plumage("white", "white", wing="pink", tail="white", accent="pink", bill="pink", legs="pink"),
        ),
        (Mark("bill", 0.62, 1.0, 0, 1, "black"), Mark("wing", 0.75, 1.0, -1, 1, "black")),
        ("standing", "standing", "flying"),
    ),
    Species(
        "pelican",
        Build(
            depth=0.56, tilt=16, neck=0.36, neck_width=0.17, neck_angle=72, neck_curve=0.2, head=0.16,
            bill="pouch", bill_length=0.72, bill_depth=0.14, bill_angle=-18, tail="wedge", tail_length=0.12,
            tail_width=0.3, leg=0.2, span=1.3, chord=0.46, wing_tip="finger",
        ),
        (
            Plumage("white", "white", wing="white", accent="yellow", bill="orange", legs="orange"),
            Plumage("brown", "brown", head="cream", wing="grey", tail="brown", accent="yellow", bill="tan",
                    legs="slate"),
        ),
        (Mark("head", 0.1, 0.7, -0.9, -0.5, "accent"), Mark("wing", 0.75, 1.0, -1, 1, "black")),
        ("standing", "swimming", "flying"),
    ),
    Species(
        "magpie",
        Build(
            depth=0.46, tilt=22, neck=0.02, neck_width=0.34, neck_angle=48, head=0.19, bill="cone",
            bill_length=0.22, bill_depth=0.13, tail="long", tail_length=0.85, tail_width=0.15, tail_angle=8,
            leg=0.26, span=0.85, chord=0.44,
        ),
        (
            Plumage("pied", "black", "white", wing="navy", tail="emerald", accent="white"),
            Plumage("azure", "cream", "white", head="black", wing="turquoise", tail="turquoise",
                    accent="silver"),
        ),
        (Mark("wing", 0.12, 0.4, -0.5, 0.6, "accent"), Mark("body", 0.8, 0.99, -1, 1, "head")),
        ("perched", "standing", "flying"),
    ),
    Species(
        "cardinal",
        Build(
            depth=0.5, tilt=44, neck=0.0, neck_width=0.38, neck_angle=62, head=0.2, bill="cone",
            bill_length=0.17, bill_depth=0.17, tail="square", tail_length=0.55, tail_width=0.14, leg=0.16,
            span=0.7, chord=0.4, crest="peak",
        ),
        (
            Plumage("red", "red", wing="crimson", tail="crimson", bill="orange", legs="brown"),
            Plumage("tan", "tan", head="rust", wing="brown", tail="rust", bill="coral", legs="brown"),
        ),
        (Mark("head", 0.62, 1.0, -0.35, 1.0, "black"),),
    ),
    Species(
        "stork",
        Build(
            depth=0.46, tilt=26, neck=0.42, neck_width=0.16, neck_angle=70, neck_curve=0.08, head=0.13,
            bill="dagger", bill_length=0.5, bill_depth=0.11, bill_angle=-12, tail="square", tail_length=0.14,
            tail_width=0.22, leg=0.8, span=1.3, chord=0.5, wing_tip="finger",
        ),
        (
            Plumage("white", "white", wing="white", accent="black", bill="red", legs="red"),
            Plumage("black", "black", "white", wing="black", accent="emerald", bill="crimson",
                    legs="crimson"),
        ),
        (Mark("wing", 0.45, 1.0, -0.2, 1, "accent"), Mark("wing", 0.75, 1.0, -1, 1, "accent")),
        ("standing", "standing", "soaring", "flying"),
    ),
    Species(
        "puffin",
        Build(
            depth=0.58, tilt=62, neck=0.0, neck_width=0.44, neck_angle=78, head=0.23, bill="giant",
            bill_length=0.3, bill_depth=0.3, tail="wedge", tail_length=0.1, tail_width=0.22, leg=0.14,
            span=0.75, chord=0.26,
        ),
        (
            Plumage("black", "black", "white", wing="black", accent="white", bill="orange", legs="orange"),
            Plumage("brown", "brown", "cream", wing="brown", accent="silver", bill="red", legs="red"),
        ),
        (
            Mark("head", 0.2, 0.98, -0.45, 0.85, "accent"),
            Mark("bill", -0.1, 0.3, 0, 1, "slate"),
            Mark("bill", 0.45, 0.55, 0, 1, "yellow"),
        ),
        ("standing", "standing", "flying"),
    ),
    Species(
        "hoopoe",
        Build(
            depth=0.42, tilt=30, neck=0.06, neck_width=0.24, neck_angle=58, head=0.16, bill="down",
            bill_length=0.46, bill_depth=0.08, tail="square", tail_length=0.4, tail_width=0.16, leg=0.16,
            span=0.85, chord=0.48, crest="fan",
        ),
        (
            Plumage("orange", "orange", wing="black", tail="black", accent="orange", legs="grey"),
            Plumage("tan", "tan", wing="brown", tail="brown", accent="rust", legs="grey"),
        ),
        (
            Mark("wing", 0.3, 0.38, -0.95, 0.95, "white"),
            Mark("wing", 0.5, 0.58, -0.95, 0.95, "white"),
            Mark("wing", 0.7, 0.78, -0.95, 0.95, "white"),
            Mark("tail", 0.55, 0.7, -1, 1, "white"),
        ),
    ),
)

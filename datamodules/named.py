"""Data sets other than folders of photographs: the word before the colon of a root says which kind.

torchvision:DTD, torchvision:DTD:FOLDER   datamodules.torchvision_sets
hf:NAME, hf:FOLDER                        datamodules.hf_sets
webdataset:FOLDER                         datamodules.shards
"""

from datamodules.collection import Collection

KINDS = ("torchvision", "hf", "webdataset")


def is_named(root: str) -> bool:
    """Whether a root names a data set, such as generated scenes, instead of a folder of photographs or a manifest."""
    return root.partition(":")[0] in (*KINDS, "birdscenes") and ":" in root


def named_collection(root: str) -> Collection | None:
    """The images of a named data set, or None for a root that doesn't start with one of `KINDS`.

    Raises:
        UserError: there is no such data set, or it can't be read or downloaded.
    """
    kind, colon, name = root.partition(":")
    if colon and kind == "torchvision":
        from datamodules.torchvision_sets import collect_torchvision

        return collect_torchvision(name)
    if colon and kind == "hf":
        from datamodules.hf_sets import collect_hf

        return collect_hf(name)
    if colon and kind == "webdataset":
        from datamodules.shards import collect_shards

        return collect_shards(name)
    return None

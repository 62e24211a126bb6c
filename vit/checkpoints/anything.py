"""`vit.load`: a classifier from any source, or a captioner from its model folder."""

from typing import Any

from vit.checkpoints.captioner import is_captioner, load_captioner
from vit.checkpoints.load import load as load_classifier
from vit.foundation import UserError
from vit.models.captioner import Captioner
from vit.models.classifier import Classifier


def load(source: Any, **options: Any) -> Classifier | Captioner:
    """The model of a checkpoint, see `vit.checkpoints.load.load`; a captioner from its model folder, without options.

    Raises:
        UserError: when it can't be read or does not fit, or for options with a captioner.
    """
    if not is_captioner(source):
        return load_classifier(source, **options)
    if options:
        raise UserError(f"{source} is a captioner, which can only be loaded as it is.\nLeave out {', '.join(options)}.")
    return load_captioner(source)

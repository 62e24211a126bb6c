"""One LightningDataModule per kind of data, and what they share: reading, transforms, sampling.

Import from the modules, such as `datamodules.image_folder`, so that this file stays quick to import.
"""

import os

# albumentations reads this when it is imported; without it, it looks for a newer version on the network.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

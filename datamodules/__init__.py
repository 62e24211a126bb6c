"""One LightningDataModule a kind of data, and what they share: reading, transforms, sampling.

Import from the modules, such as `datamodules.image_folder`: this file stays quick to import.
"""

import os

# Read by albumentations when it is imported: without it, it asks the network for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

"""Classification as a LightningModule: step, loss, metrics."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vit.foundation import UserError, none_read
from vit.models.classifier import Classifier
from vit.training.optim import choose_trained, parameter_groups, warmup_cosine


class ClassificationTask(L.LightningModule):
    """Fine-tunes or trains a Classifier. A batch is {"image": (B, C, h, w), "target": (B,), "skipped": [...]}.

    Args:
        model: what learns.
        lr, weight_decay, layer_decay: see `parameter_groups`.
        warmup_epochs, min_lr: see `warmup_cosine`.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        beta2: decay of AdamW's second moment.
        trained: "all" or "head".
        seed: dropout and drop path of a micro-batch are a function of (seed, rank, its number) alone.
        names: of the training images, by their `index` in a batch.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        lr: float,
        weight_decay: float,
        layer_decay: float = 1.0,
        warmup_epochs: float = 1.0,
        min_lr: float = 0.01,
        label_smoothing: float = 0.0,
        beta2: float = 0.999,
        trained: str = "all",
        seed: int = 0,
        names: Sequence[str] = (),
    ):
        super().__init__()
        self.model = model
        self.groups = {"lr": lr, "weight_decay": weight_decay, "layer_decay": layer_decay}
        self.warmup_epochs = warmup_epochs
        self.min_lr = min_lr
        self.label_smoothing = label_smoothing
        self.beta2 = beta2
        self.trained = trained
        self.seed = seed
        self.names = names
        self.skipped: dict[str, str] = {}
        choose_trained(model, trained)
        classes = model.num_classes
        self.train_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))

    def on_train_epoch_start(self) -> None:
        if self.trained == "head":
            self.model.encoder.eval()  # a frozen encoder gives the same features in every epoch

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        number = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        torch.manual_seed(hash((self.seed, self.global_rank, number)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        self.skipped.update(batch["skipped"])
        images, targets = batch["image"], batch["target"]
        if len(images) == 0:  # nothing in the batch could be read
            return None
        logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        self._require_finite(loss, [self.names[index] for index in batch["index"].tolist()] if self.names else [])
        self.train_top1(logits.detach(), targets)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(images))
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images, targets = batch["image"], batch["target"]
        if len(images) == 0:
            return
        logits = self.model(images).float()
        self.val_top1(logits, targets)
        self.val_top5(logits, targets)
        loss = F.cross_entropy(logits, targets)
        self._require_finite(loss, [])
        self.log("val_loss", loss, batch_size=len(images))
        self.log("val_top1", self.val_top1, batch_size=len(images))
        self.log("val_top5", self.val_top5, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        # Validation comes before the end of the epoch, so that no checkpoint of such an epoch is written.
        for what, metric in (("training", self.train_top1), ("validation", self.val_top1)):
            if not metric.update_called:
                raise none_read(f"{what} images", self.skipped)

    def _require_finite(self, loss: Tensor, names: list[str]) -> None:
        """Ends the run before weights that are lost, or soon will be, take the place of a good checkpoint."""
        if not loss.isfinite():
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            listed = f"The images of its batch: {', '.join(names[:12])}{more}.\n" if names else ""
            raise UserError(
                f"The loss became {loss.item()} in epoch {self.current_epoch + 1}; the checkpoints are from before.\n"
                f"{listed}Try a lower --optim.lr or --trainer.precision fp32, and look at the images."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(parameter_groups(self.model, **self.groups), betas=(0.9, self.beta2), fused=True)
        total_steps = int(self.trainer.estimated_stepping_batches)
        warmup_steps = round(self.warmup_epochs * total_steps / max(1, self.trainer.max_epochs or 1))

        def factor(step: int) -> float:
            return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_lr=self.min_lr)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

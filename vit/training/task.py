"""What the tasks share: seeding of each micro-batch, the optimizer, and the handling of steps that are not finite."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torchmetrics import MeanMetric, Metric

from vit import processes
from vit.checkpoints.card import Training
from vit.foundation import UserError, none_read
from vit.models.captioner import Captioner
from vit.models.classifier import Classifier
from vit.models.masked import MaskedImageModel
from vit.training import running, sharding
from vit.training.optim import check_optimizer, new_optimizer, parameter_groups, scaled_lr, warmup_cosine


@dataclass(frozen=True)
class Judge:
    """The metric that decides which epoch of a run is the best; of equal ones, the lower validation loss is better.

    Args:
        metric: its name among the task's `epoch_metrics`.
        name: its name for people.
        higher_is_better: whether it is a share of correct answers; otherwise it is a loss.
    """

    metric: str
    name: str
    higher_is_better: bool = True

    def score(self, metrics: Mapping[str, Any]) -> tuple[float, float]:
        """The score of an epoch's metrics; greater is better, and NaN is worse than any number."""
        value = float(metrics[self.metric]) * (1 if self.higher_is_better else -1)
        # NaN is neither greater nor smaller than anything.
        return -math.inf if math.isnan(value) else value, -float(metrics["val_loss"])

    def text(self, value: float) -> str:
        """A value of the metric as text."""
        return f"{value:.1%}" if self.higher_is_better else f"{value:.4f}"


class TrainingTask(L.LightningModule):
    """Trains a model with the loss that `loss` returns. A batch has "image" (B, C, h, w), "index" and "skipped".

    A task also defines `judge`, which decides the best epoch, `told`, the metrics in the model card (name -> one of
    `epoch_metrics`), and `write_model`, which writes its model folder.

    Args:
        model: the model to train; has an `encoder`.
        lr, weight_decay, layer_decay: see `parameter_groups`.
        warmup_epochs, min_lr: see `warmup_cosine`.
        name, beta2: see `new_optimizer`.
        scale_lr, lr_base_size: rule and images per step, see `scaled_lr`.
        ema: decay of the moving average of the weights, which is then validated and saved as the model; 0 for none. It
            rises from 0 to this value over the first steps, as in timm.
        seed: the random numbers of a micro-batch are a function of (seed, rank, its number) only.
        skip_bad_steps: maximum number of steps in a row to skip because the loss or the gradient is not finite.
        names: names of the training images, by their `index` in a batch.
        data: a digest of all data, see `SplitLoaders.fingerprint`: a run is only resumed with the same.

    Raises:
        UserError: for an unknown optimizer.
    """

    judge: ClassVar[Judge] = Judge("val_loss", "validation loss", higher_is_better=False)
    told: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        model: Classifier | Captioner | MaskedImageModel,
        *,
        lr: float,
        weight_decay: float,
        layer_decay: float = 1.0,
        warmup_epochs: float = 1.0,
        min_lr: float = 0.01,
        name: str = "adamw",
        beta2: float = 0.999,
        scale_lr: str = "none",
        lr_base_size: int = 256,
        ema: float = 0.0,
        seed: int = 0,
        skip_bad_steps: int = 0,
        names: Sequence[str] = (),
        data: str = "",
    ):
        super().__init__()
        check_optimizer(name)
        self.model = model
        self.average = ModelEmaV3(model, ema, use_warmup=True).requires_grad_(False) if ema else None
        self.lr = lr
        self.groups = {"weight_decay": weight_decay, "layer_decay": layer_decay}
        self.scale_lr, self.lr_base_size = scale_lr, lr_base_size
        self.warmup_epochs = warmup_epochs
        self.min_lr = min_lr
        self.optimizer_name, self.beta2 = name, beta2
        self.seed = seed
        self.skip_bad_steps = skip_bad_steps
        self.names = names
        self.data = data
        self.skipped: dict[str, str] = {}
        self.bad_steps = self.bad_in_a_row = 0
        self.expected_steps: Callable[[int], float] | None = None  # step -> total, for a run that ends by the clock
        self._step_names: list[str] = []  # the images of the current optimizer step
        self.train_loss = MeanMetric()
        self.val_loss = MeanMetric()

    @property
    def evaluated(self) -> Any:
        """The model that is validated and saved: the moving average, if there is one."""
        return self.model if self.average is None else self.average.module

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        """(The mean loss of a batch, the number of terms in the mean)."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Spreads the weights over the processes, if the strategy is to do so."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not sharding.is_spread(self.model):
            assert self.device_mesh is not None
            mesh = self.device_mesh["data_parallel"]
            # In a tuple, which keeps it from becoming a part of this module, and of its checkpoints.
            self._plain = (sharding.spread(self.model, mesh, self.trainer.strategy.root_device),)

    def whole_model(self) -> Any:
        """The model that is validated and saved, with all its weights, for the first process. All must call this."""
        if not sharding.is_spread(self.model):
            return self.evaluated
        return sharding.with_whole_weights(self.model, *self._plain)

    def write_model(self, model: Any, folder: Path, about: Training | None) -> None:
        """Writes the folder of a model, see `whole_model`; `about` is what its card says about the data and the run."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        number = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        torch.manual_seed(hash((self.seed, self.global_rank, number)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        self.skipped.update(batch["skipped"])
        alone = processes.count() == 1
        if alone and len(batch["image"]) == 0:  # nothing in the batch could be read
            return None
        loss, count = self.loss(batch) if len(batch["image"]) else self._nothing(batch)
        if self.names:
            self._step_names += [self.names[index] for index in batch["index"].tolist()]
        whole, images = loss.detach(), float(len(batch["image"]))
        if not alone:
            summed, total, images = processes.total(float(whole) * count, count, images)
            if not total:
                return None
            whole = torch.tensor(summed / total)
            # The gradients of the processes are averaged, but we want the mean over all samples.
            loss = loss * (count * processes.count() / total)
        # Each image counts the same, even in a small batch at the end of an epoch, whose mean is mostly noise.
        loss = loss * (images / (self._batch_images * processes.count()))
        if not whole.isfinite():
            self._bad_step("loss", whole)
            return loss  # its gradient will be skipped as well
        self.train_loss.update(whole, weight=count)
        self.log("train_loss_step", whole, batch_size=1)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], batch_size=1)
        return loss

    def _nothing(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        """A loss with zero gradient, for a process without images when others have some, because all processes must go
        through the model."""
        before = running.states(self.running_metrics())
        loss, _ = self.loss(self.stand_in(batch))
        running.restore(self.running_metrics(), before)
        return loss * 0, 0

    def stand_in(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with one blank image, made from a batch without images."""
        return {
            name: value.new_zeros(1, *value.shape[1:]) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def update_val_loss(self, loss: Tensor, count: int) -> None:
        """Adds the loss of a validation batch, a mean over `count` terms.

        Raises:
            UserError: when it is not finite.
        """
        if not loss.isfinite():
            raise self._diverged("validation loss", loss, [])
        self.val_loss.update(loss, weight=count)

    def on_validation_epoch_end(self) -> None:
        # Validation comes before the end of the epoch, so that no checkpoint of such an epoch is written.
        for what, metric in (("training", self.train_loss), ("validation", self.val_loss)):
            if not processes.largest(metric.update_called)[0]:
                raise none_read(f"{what} images", self.skipped)
        for name, total in self.epoch_metrics().items():
            self.log(name, total.compute())
            total.reset()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm of all gradients; a step whose norm is not finite is skipped, or ends the run."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        norm = sharding.whole(get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
        if not norm.isfinite():
            self._bad_step("gradient", norm)
            optimizer.zero_grad(set_to_none=True)  # the optimizer skips weights without a gradient
            self.bad_steps, self.bad_in_a_row = self.bad_steps + 1, self.bad_in_a_row + 1
        else:
            self.bad_in_a_row = 0
            if gradient_clip_val:
                clip_grads_with_norm_(weights, gradient_clip_val, norm)
        self._step_names.clear()

    def optimizer_step(self, *args: Any, **keywords: Any) -> None:
        super().optimizer_step(*args, **keywords)
        if self.average is not None and not self.bad_in_a_row:
            self.average.update(self.model, step=self.global_step + 1)  # Lightning counts the step later

    def _bad_step(self, what: str, value: Tensor) -> None:
        """Ends the run, unless more bad steps may be skipped, before bad weights replace a good checkpoint."""
        if self.bad_in_a_row >= self.skip_bad_steps:
            names = [name for each in processes.gathered(self._step_names) for name in each]
            raise self._diverged(what, value, names)

    def _diverged(self, what: str, value: Tensor, names: Sequence[str]) -> UserError:
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        listed = f"The images of its step: {', '.join(names[:12])}{more}.\n" if names else ""
        skipped = f" after {self.bad_in_a_row} skipped steps" if self.bad_in_a_row else ""
        epoch = self.current_epoch + 1
        return UserError(
            f"The {what} became {value.item()} in epoch {epoch}{skipped}; the checkpoints are from before that.\n"
            f"{listed}Try a lower --optim.lr or --trainer.precision fp32, and look at the images."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = processes.merged(self.skipped)
        checkpoint["running"] = {
            "metrics": processes.gathered(running.states(self.running_metrics())),  # each process adds up its own
            "skipped": dict(self.skipped),
            "bad_steps": [self.bad_steps, self.bad_in_a_row],
            "data": [len(self.names), self.data],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["running"]
        before, now = saved.get("data", [0, ""]), [len(self.names), self.data]
        if before[1] and before != now:
            counts = f" ({before[0]} training images then, {now[0]} now)" if before[0] != now[0] else ""
            raise UserError(
                f"The run started with other images or labels{counts}.\n"
                "Resume it with the data that it started with, or start a new run from its model folder."
            )
        running.restore(self.running_metrics(), saved["metrics"][processes.rank()])
        self.skipped = dict(saved["skipped"])
        self.bad_steps, self.bad_in_a_row = saved["bad_steps"]

    def on_train_end(self) -> None:
        self.skipped = processes.merged(self.skipped)

    def running_metrics(self) -> dict[str, Metric]:
        """The metrics that accumulate in training, and are saved in checkpoints."""
        return {"train_loss": self.train_loss}

    def epoch_metrics(self) -> dict[str, Metric]:
        """The metrics at the end of each epoch, by their name in metrics.csv."""
        return {"train_loss_epoch": self.train_loss, "val_loss": self.val_loss}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        lr = scaled_lr(self.lr, rule=self.scale_lr, images=self._step_images(), base_size=self.lr_base_size)
        groups = parameter_groups(self.model, lr=lr, **self.groups)
        optimizer = new_optimizer(self.optimizer_name, groups, beta2=self.beta2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self) -> Callable[[int], float]:
        """The factor on the learning rates at a step, over the epochs of the run or over its time."""
        self.trainer.fit_loop.setup_data()  # otherwise the number of batches is not known yet
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)  # an epoch
        warmup_steps = round(self.warmup_epochs * steps)
        whole = steps * (self.trainer.max_epochs or 1)

        def factor(step: int) -> float:
            total_steps = self.expected_steps(step) if self.expected_steps else whole
            return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_lr=self.min_lr)

        return factor

    @property
    def _batch_images(self) -> int:
        """The number of images in a process's full batch."""
        batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return batch_size

    def _step_images(self) -> int:
        """The number of images in a full step."""
        return self._batch_images * self.trainer.accumulate_grad_batches * self.trainer.world_size

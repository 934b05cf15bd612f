"""What to type instead of an option that does not exist: options of timm's scripts, methods."""

from collections.abc import Iterable

EQUIVALENTS = {
    "aa": "--augment",
    "amp": "--precision bf16",
    "amp_dtype": "--precision",
    "b": "--batch-size",
    "batch": "--batch-size",
    "bce_loss": "--loss bce",
    "color_jitter": "--augment colorjitter",
    "crop_pct": "--crop-fraction",
    "data_dir": "--data",
    "early_stopping": "--patience",
    "early_stopping_patience": "--patience",
    "experiment": "--label",
    "finetune": "--init",
    "freeze_backbone": "--freeze backbone",
    "freeze_layers": "--freeze",
    "grad_accum_steps": "--accumulate",
    "hflip": "--flip",
    "img_size": "--image-size",
    "imgsz": "--image-size",
    "initial_checkpoint": "--init",
    "input_size": "--image-size",
    "j": "--workers",
    "learning_rate": "--lr",
    "linear_probe": "--freeze backbone",
    "log_interval": "--log-every",
    "log_wandb": "--log wandb",
    "lr_layer_decay": "--layer-decay",
    "model_ema": "--teacher.momentum",
    "model_ema_decay": "--teacher.momentum",
    "opt": "--optimizer",
    "output": "--out",
    "remode": "--erasing-fill",
    "reprob": "--random-erasing",
    "smoothing": "--label-smoothing",
    "train_interpolation": "--interpolation",
    "validation_batch_size": "--eval-batch-size",
    "wd": "--weight-decay",
}
"""Name of an option elsewhere (timm, Ultralytics) -> what to type here."""

ANSWERS = {
    "num_classes": "leave it out: the folders or labels of --data say how many classes there are",
    "nb_classes": "leave it out: the folders or labels of --data say how many classes there are",
    "sched": "leave it out: the rate always follows a cosine; see --min-lr and --warmup-epochs",
    "mixup_off_epoch": "write --mix.stop with a fraction of the training, such as 0.9",
    "model_ema_force_cpu": "leave it out: the teacher stays on the device of the student",
    "resume": "continue a run with `adautomix resume RUN`",
}
"""Name of an option elsewhere -> what to do here, where no option is its equivalent."""


def advice(name: str, methods: Iterable[str], known: Iterable[str]) -> str | None:
    """Return what to type instead of an option, or None if nothing better than a guess is known.

    Args:
        name: name of the option as in files, such as "img_size".
        methods: names of the mixing methods.
        known: names of the options that the command has.
    """
    if name in ANSWERS:
        return ANSWERS[name]
    if name in methods:
        alpha = f"{name}.alpha"
        hint = f", and its strength with --{alpha} VALUE" if alpha in known else ""
        return f"choose the method with --method {name}{hint}"
    equivalent = EQUIVALENTS.get(name)
    if equivalent and equivalent[2:].partition(" ")[0].partition(".")[0].replace("-", "_") in {
        option.partition(".")[0] for option in known
    }:
        return f"write {equivalent} instead"
    return None

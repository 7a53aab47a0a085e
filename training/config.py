"""What a training run is asked to do: the flags of `train.py`, and the presets behind them.

Exit codes of `train.py`: 0 done; 1 internal error; 2 usage; 5 output folder unusable; 6 something
differs (shard set, split, checkpoint, configuration); 7 damaged shards; 8 the loss became
non-finite; 85 stopped by SIGTERM or SIGUSR1 with a checkpoint saved: start the same command again
to continue (a Slurm script requeues on 85).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shards.errors import UsageError
from training.presets import PRESETS, SIZE_FLAGS, Architecture, PoolName, PresetName, check_architecture, with_flags

EXIT_DIVERGED = 8
EXIT_PREEMPTED = 85
NO_INIT = "none"

# Flags that may change between a run and its continuation: they do not touch the results.
FREE_ON_RESUME = frozenset(
    {"shards", "out", "init", "split", "resume", "threads", "log_every", "save_every", "keep_checkpoints"}
    | {"deepspeed_config", "local_rank", "cache", "cache_gb", "on_bad_data"}
    | {"recompute", "compile", "channels_last", "describe", "preflight"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train one phase: 1 autoencoder, 2 autoencoder + transformer, 3 encoder + transformer on a target.

    Exit codes: 0 done, 2 usage, 5 output unusable, 6 something differs, 7 damaged shards, 8 non-finite
    loss, 85 stopped by SIGTERM or SIGUSR1 with a checkpoint saved (the same command continues).
    """

    phase: Literal[1, 2, 3]
    """Phase to train."""
    shards: tuple[str, ...]
    """Folder or URL of the shard set; several with the same grid and mask are mixed."""
    out: Path | None = None
    """Run folder to write (required): configuration, split, log, checkpoints, weights."""
    init: str | None = None
    """Run folder of the phase before (phase 3 also takes a phase 1), or 'none' to start from nothing."""
    preset: PresetName = "base"
    """Size of the model and length of the training; single values below override it. tff and hackathon are the
    ancestors' networks, kept to compare with."""
    describe: bool = False
    """Print parameters, FLOPs, activation memory and bytes of a window, and end; nothing is written."""

    preflight: bool = False
    """Check on every rank that a run with these flags would start and be fed, print a table, and end; nothing is
    written. 0 if so, else 1."""

    target: str | None = None
    """Phase 3: column of participants.tsv to predict."""
    target_kind: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    """Phase 3: what the column is; 'auto' decides from its values and says so."""
    class_weights: bool = False
    """Phase 3: weight classes by their inverse frequency among the training subjects."""

    split: Path | None = None
    """A split.json to use; without it phase 1 makes one and later phases inherit it."""
    split_fractions: tuple[float, float, float] | None = None
    """Shares of train, validation and test subjects (default 0.7 0.15 0.15)."""
    split_seed: int | None = None
    """Seed of the split (default 0)."""
    split_group: str | None = None
    """Column whose groups are never divided; default: a family column if there is one; 'none' for none."""
    split_stratify: tuple[str, ...] | None = None
    """Columns that are spread evenly over the parts, also in pairs; numbers in quantile bins (age:6 makes six)."""

    window: str = "20"
    """Window length in frames (20) or seconds (16s)."""
    batch_size: int | None = None
    """Windows per rank and step."""
    accumulation: int = 1
    """Batches per optimizer step."""
    steps: int | None = None
    """Optimizer steps; phase 3 with 0 stops at the closed-form probe."""
    epochs: float | None = None
    """Instead of --steps: passes over the training windows."""
    lr: float | None = None
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps that warms up linearly; a cosine to zero follows."""
    weight_decay: float = 0.01
    """AdamW's weight decay on matrices and kernels."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    seed: int = 0
    """Seed of weights, data order and frame masks."""

    intensity: bool | None = None
    """Feed the intensity (anatomy and signal) as a second channel beside the residual."""
    latent: int | None = None
    """Width of the frame latent."""
    channels: tuple[int, ...] | None = None
    """Channels of each convolution stage, multiples of 8."""
    blocks: int | None = None
    """Residual blocks of each stage after the first."""
    width: int | None = None
    """Width of the transformer."""
    depth: int | None = None
    """Layers of the transformer."""
    heads: int | None = None
    """Attention heads; width must divide by 2 * heads."""
    dropout: float | None = None
    """Dropout of the transformer."""
    recompute: bool = False
    """Activation checkpointing: keep only the blocks' inputs and compute the rest again in the backward pass."""
    compile: bool = False
    """torch.compile the model; the first steps take a minute longer."""
    channels_last: bool = False
    """Lay the volumes out with channels last (faster convolutions on some GPUs)."""

    pca_frames: int | None = None
    """Phase 1: training frames whose principal components the autoencoder starts from; 0 starts at random
    (default 2048; the ancestors 0)."""
    loss: Literal["huber", "l1", "mse"] = "huber"
    """Phases 1 and 2: reconstruction loss inside the mask, on residuals (units of each voxel's SD)."""
    active_weight: float = 0.0
    """Phases 1 and 2: weight of the same loss on each frame's most active tenth of voxels."""
    perceptual_weight: float = 0.0
    """Phases 1 and 2: weight of TFF's perceptual loss (VGG16 features of axial slices)."""
    perceptual_file: Path | None = None
    """Weights of VGG16 in safetensors, torchvision's names; nothing is downloaded."""
    perceptual_slices: float = 0.1
    """Share of a frame's axial slices that the perceptual loss sees."""
    mask_fraction: float = 0.25
    """Phase 2: share of each window's frames that are hidden and to be reconstructed."""
    mask_span: int = 3
    """Phase 2: hidden frames come in stretches of this many."""
    latent_weight: float | None = None
    """Phase 2: weight of predicting the latents of hidden frames beside their voxels (default 1 if the encoder is
    frozen, else 0)."""
    ahead_weight: float = 1.0
    """Phase 2: weight of expecting each frame's latent from the frames before it (not in the ancestors)."""
    contrast_weight: float = 0.0
    """Phase 2: weight of the contrast of neighbouring frames against all others (InfoNCE)."""
    contrast_temperature: float = 0.1
    """Phase 2: temperature of the contrasts."""
    pair_weight: float = 0.0
    """Phase 2: weight of the contrast of two windows of a run against windows of others; batches then hold pairs."""
    direction_weight: float = 0.0
    """Phase 2: weight of telling each window from its time reversal."""

    pool: PoolName | None = None
    """Phase 3: what the head sees of a window (default moments; the ancestors cls)."""
    encoder_lr_scale: float | None = None
    """Phases 2 and 3: learning rate of the encoder (phase 2: and decoder) as a share of --lr; 0 keeps it frozen
    (default 0; 1 in the ancestors and in phase 2 without --init)."""
    sequence_lr_scale: float | None = None
    """Phase 3: learning rate of the transformer as a share of --lr; 0 keeps it frozen (default 0; 1 in the
    ancestors)."""
    layer_decay: float = 1.0
    """Phase 3: each layer further from the head learns at this share of the next one's rate."""
    thaw_at: float = 0.0
    """Phase 3: encoder and transformer stay frozen for this share of the steps."""
    patience: int = 4
    """Phase 3: stop after this many validations without a better one."""

    val_every: int | None = None
    """Steps between validations (default: a fifth of the steps)."""
    val_runs: int = 64
    """Phases 1 and 2: validate on at most this many runs, spread over the validation subjects."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 500
    """Steps between checkpoints; one is always saved at the end and on SIGTERM or SIGUSR1."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    resume: Literal["auto", "no"] = "auto"
    """'auto' continues a run that its own folder holds; 'no' refuses a folder that holds one."""
    sample_by: Literal["window", "run", "subject"] = "window"
    """What is drawn equally often: each window, each run, or each subject."""
    shard_weights: tuple[float, ...] | None = None
    """Several shard sets: how often each is drawn, such as 1 3 (default: by how much they hold)."""
    subjects: Literal["shared", "distinct"] = "shared"
    """Several shard sets: whether a subject's label means the same person in all of them."""
    on_bad_data: Literal["raise", "skip"] = "raise"
    """'skip' takes another window in place of a damaged one, logs it, and stops after 100 of them."""
    cache: Path | None = None
    """Folder on a fast disk of this node that keeps what was read from slow or remote shards."""
    cache_gb: float = 100.0
    """Bound of that cache."""
    threads: int = 2
    """Threads that read and decode windows."""
    deepspeed_config: Path | None = None
    """DeepSpeed's JSON; its "auto" values are filled from these flags (default: ZeRO-1, fp32)."""
    local_rank: int = 0
    """Set by the deepspeed launcher; the environment decides."""

    def __post_init__(self) -> None:
        if not self.describe:
            self._check_presence()
        self._check_exclusions()
        self._check_numbers()

    def _check_presence(self) -> None:
        if self.out is None:
            raise UsageError("--out DIR is missing, the run folder to write")
        if self.phase == 3 and self.target is None:
            raise UsageError("--phase 3 needs --target COLUMN, a column of participants.tsv")
        if self.phase > 1 and self.init is None:
            raise UsageError(f"--phase {self.phase} needs --init DIR, the run of the phase before, or --init none")

    def _check_exclusions(self) -> None:
        if self.phase != 3 and self.target is not None:
            raise UsageError(f"--target {self.target} belongs to --phase 3, not to --phase {self.phase}")
        if self.phase == 1 and self.init not in (None, NO_INIT):
            raise UsageError(f"--init {self.init}: phase 1 starts from nothing; leave --init out")
        if self.steps is not None and self.epochs is not None:
            raise UsageError(f"--steps {self.steps} and --epochs {self.epochs} exclude each other; give one")
        if self.shard_weights is not None and len(self.shard_weights) != len(self.shards):
            raise UsageError(f"--shard_weights: {len(self.shard_weights)} for {len(self.shards)} shard sets; one each")
        if self.split is not None and self.split_flags():
            raise UsageError(f"--split {self.split} and {self.split_flags()[0]} exclude each other; give one")

    def _check_numbers(self) -> None:
        positive = ["batch_size", "accumulation", "latent", "blocks", "width", "depth", "heads", "mask_span"]
        positive += ["val_every", "val_runs", "log_every", "save_every", "keep_checkpoints", "threads", "patience"]
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: must be at least 1")
        lowest = ("steps", "epochs", "lr", "weight_decay", "clip", "active_weight", "contrast_weight", "pca_frames")
        more = ("perceptual_weight", "latent_weight", "ahead_weight", "pair_weight", "direction_weight")
        for name in (*lowest, *more, "seed", "encoder_lr_scale", "sequence_lr_scale", "cache_gb"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"--{name} {value}: must be a number >= 0")
        for name in ("warmup", "mask_fraction", "dropout", "thaw_at"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: must lie in [0, 1)")
        for name in ("layer_decay", "perceptual_slices"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"--{name} {getattr(self, name)}: must lie in (0, 1]")
        if self.perceptual_weight and self.perceptual_file is None:
            raise UsageError(
                f"--perceptual_weight {self.perceptual_weight} needs --perceptual_file, VGG16's weights in safetensors"
            )
        if self.contrast_temperature <= 0:
            raise UsageError(f"--contrast_temperature {self.contrast_temperature}: must be above 0")
        if self.epochs == 0:
            raise UsageError("--epochs 0: must be above 0; phase 3 alone can do without gradient steps, by --steps 0")
        if self.phase < 3 and self.steps == 0:
            raise UsageError(f"--steps 0 is for phase 3 only (the closed-form probe), not for phase {self.phase}")
        size = architecture(self)
        check_architecture(size)
        if self.pca_frames and size.family == "ancestor":
            raise UsageError(f"--pca_frames {self.pca_frames}: --preset {self.preset} starts at random; leave it out")

    def split_flags(self) -> list[str]:
        """Flags that ask for a split to be made, as given."""
        names = ("split_fractions", "split_seed", "split_group", "split_stratify")
        return [f"--{name}" for name in names if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A `TrainConfig` with the preset's values written out; `steps` is None under --epochs until windows are known."""

    out: Path
    batch_size: int
    lr: float
    intensity: bool
    latent: int
    channels: tuple[int, ...]
    blocks: int
    width: int
    depth: int
    heads: int
    dropout: float
    pca_frames: int
    latent_weight: float
    pool: PoolName
    encoder_lr_scale: float
    sequence_lr_scale: float


def architecture(config: TrainConfig) -> Architecture:
    """The model's size: the preset's, with single flags on top."""
    given = {name: getattr(config, name) for name in SIZE_FLAGS if getattr(config, name) is not None}
    return with_flags(config.preset, given)


def resolve(config: TrainConfig) -> ResolvedConfig:
    """The same configuration with the preset's values in place of what was not given."""
    preset, size = PRESETS[config.preset], architecture(config)
    defaults: dict[str, Any] = {
        "out": Path(),  # of --describe, which writes nothing
        "pool": preset.pool,
        "pca_frames": preset.pca_frames,
        "batch_size": preset.batch_size[config.phase - 1],
        "lr": preset.lr[config.phase - 1],
        **_what_learns(config, size),
    }
    if config.epochs is None:
        defaults["steps"] = preset.steps[config.phase - 1]
    given = {name: value for name, value in vars(config).items() if value is not None}
    return ResolvedConfig(**defaults | given | {name: getattr(size, name) for name in SIZE_FLAGS})


def _what_learns(config: TrainConfig, size: Architecture) -> dict[str, float]:
    """Rates of the parts that come from an earlier phase, and the objective that needs them to stand still."""
    ancestor = size.family == "ancestor"
    from_nothing = config.phase == 2 and config.init == NO_INIT
    encoder = config.encoder_lr_scale
    if encoder is None:
        encoder = 1.0 if ancestor or from_nothing else 0.0
    return {
        "encoder_lr_scale": encoder,
        "sequence_lr_scale": 1.0 if ancestor else 0.0,
        "latent_weight": 1.0 if config.phase == 2 and encoder == 0 else 0.0,
    }


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}

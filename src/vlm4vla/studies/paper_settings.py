"""Every choice of the paper's trainings beside what the paper states and what the released code does, with sources.

*A.2.1*, *Eq. 1* and so on are the paper's; names of files are the released repository's.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm4vla.backbones.registry import released_facts
from vlm4vla.core.recipes import Trial

_NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One choice of a training: what this recipe has, what the paper states, what the released code does."""

    name: str
    here: str
    paper: str
    released: str
    source: str


def settings_of(preset: str, trial: Trial) -> list[Setting]:
    """Every choice of a paper preset's trial (`calvin`, `bridge` or `libero`), with its sources."""
    rows = [
        *_optimisation(preset, trial),
        *_data(preset, trial),
        *_model(preset, trial),
        *_evaluation(preset, trial),
    ]
    return [Setting(name=n, here=h, paper=p, released=r, source=s) for n, h, p, r, s in rows]


_Row = tuple[str, str, str, str, str]


def _optimisation(preset: str, trial: Trial) -> list[_Row]:
    train, facts = trial.train, released_facts(trial.policy.backbone, preset)
    on_calvin = preset == "calvin"
    batch = "128" if on_calvin else "512"
    unknown = "no configuration for this backbone"
    rates = "2e-05" if on_calvin else "2e-05 or 5e-05, by backbone"
    saved = {"calvin": "every 8,233 (an epoch)", "libero": "every 10,000: 5"}.get(
        preset, "every 1,250 to 10,000"
    )
    if preset == "bridge" and facts:
        saved = f"every {facts.bridge_interval:,} for this backbone: {50_000 // facts.bridge_interval}"
    fp16 = " (there is no fp16 here)" if facts and facts.precision == "fp16" else ""
    return [
        (
            "batch size",
            f"{train.batch_size}",
            batch,
            f"{batch} on 8 GPUs; the launch script starts 4, which halves it",
            "A.2.1; configs, scripts/run.sh",
        ),
        (
            "learning rate",
            f"{train.learning_rate:g}",
            "2e-05" if on_calvin else "5e-05",
            f"{2e-5 if on_calvin else facts.learning_rate:g}" if facts else f"{unknown}; {rates}",
            "A.2.1; configs",
        ),
        ("of the parts", ", ".join(train.part_rates) or "one for all", _NOT_STATED, "one for all", "main.py"),
        (
            "steps",
            f"{train.steps:,}",
            "30,000" if on_calvin else "50,000",
            "41,165 (5 epochs of 8,233)" if on_calvin else "50,000",
            "A.2.1; configs",
        ),
        (
            "warm-up",
            f"{train.warmup_steps:,} steps",
            _NOT_STATED,
            {"calvin": "2,058 (a quarter epoch)", "bridge": "2,500", "libero": "250"}[preset],
            "configs, warmup_epochs",
        ),
        ("schedule", train.schedule, _NOT_STATED, "constant", "main.py"),
        ("weight decay", f"{train.weight_decay:g}", _NOT_STATED, "0", "configs"),
        (
            "gradient clipping",
            f"{train.clip_norm:g}" if train.clip_norm else "off",
            _NOT_STATED,
            "off: 1.0 is configured and overwritten by 0",
            "main.py l.68",
        ),
        (
            "precision",
            train.precision + fp16,
            _NOT_STATED,
            facts.precision if facts else f"{unknown}; bf16 or fp16, by backbone",
            "configs",
        ),
        ("gripper's weight in the loss", f"{train.gripper_weight:g}", "1", "0.01", "Eq. 1; base_policy.py"),
        ("seed", f"{train.seed}", _NOT_STATED, "123 + rank, of the order 1126", "configs"),
        (
            "checkpoints",
            f"every {train.checkpoint_every:,} steps",
            {
                "calvin": "10k to 30k in steps of 5k (Figure 4)",
                "bridge": "every 5,000: 10",
                "libero": _NOT_STATED,
            }[preset],
            saved,
            "A.2.1; configs",
        ),
    ]


def _data(preset: str, trial: Trial) -> list[_Row]:
    policy, demonstrations = trial.policy, trial.demonstrations
    on_calvin = preset == "calvin"
    facts = released_facts(policy.backbone, preset)
    negated = facts is not None and facts.negated and not on_calvin
    chunk = "10" if on_calvin else "4"
    return [
        ("chunk", f"{policy.horizon} actions", chunk, chunk, "A.2.1"),
        (
            "image",
            f"{policy.image_size}, then the VLM's own",
            "224, then the VLM's own",
            "same; 448 where any size is allowed",
            "3.3",
        ),
        (
            "augmentation",
            trial.train.augmentation.replace("_", " "),
            _NOT_STATED,
            "random shift by -9 to 10 pixels"
            if on_calvin
            else "crop of 0.9 of the area (along the diagonal), brightness, contrast, saturation, hue",
            "calvin_dataset.py" if on_calvin else "openvla/, dlimp",
        ),
        (
            "colours in training",
            "as recorded",
            _NOT_STATED,
            "negated: x becomes -x mod 256, in training only" if negated else "as recorded",
            "base_action_prediction_dataset.py l.244",
        ),
        (
            "normalisation",
            ", then ".join(policy.normalization) or "none",
            _NOT_STATED,
            "clip=0.65" if on_calvin else "quantiles, then clip=0.65",
            "calvin_dataset.py" if on_calvin else "openvla/, configs (norm_action)",
        ),
        (
            "past the goal",
            "every step of a demonstration counts",
            _NOT_STATED,
            "the same"
            if on_calvin
            else "steps past a random goal step are masked: 6 % of the actions at length 35",
            "calvin_dataset.py" if on_calvin else "openvla/, goal_relabeling_strategy",
        ),
        (
            "order",
            "all samples shuffled, each once an epoch",
            _NOT_STATED,
            "all samples shuffled"
            if on_calvin
            else "buffer of 51,200, the same on every GPU but for the seed",
            "datasets",
        ),
        (
            "held out",
            f"{demonstrations.held_out:.0%} of the episodes, by id",
            _NOT_STATED,
            "scene D's demonstrations" if on_calvin else "the split `val`, or 5 % of the episodes",
            "configs",
        ),
    ]


def _model(preset: str, trial: Trial) -> list[_Row]:
    policy = trial.policy
    facts = released_facts(policy.backbone, preset)
    return [
        (
            "trained",
            "all" if not policy.freeze else f"all but {', '.join(policy.freeze)}",
            "all parameters",
            "all parameters",
            "A.2.1",
        ),
        ("query's start", policy.query_init, _NOT_STATED, "zeros", "base_backbone.py"),
        (
            "query's place",
            "behind the text, before the padding",
            "behind image and text",
            "behind the padding, so that its position can depend on the batch",
            "3.2; robo*.py",
        ),
        (
            "attention and positions",
            "the VLM's own",
            "the VLM's own",
            facts.attention if facts else "no configuration for this backbone",
            "A.2.3; robo*.py",
        ),
    ]


def _evaluation(preset: str, trial: Trial) -> list[_Row]:
    episodes = {
        "calvin": "1,000 sequences",
        "bridge": "24 trials a task",
        "libero": "50 trials a task",
    }[preset]
    several = {"calvin": "3 runs", "bridge": "240 plays a task", "libero": "250 plays a task"}[preset]
    repeats, noisy = trial.evaluations[0].repeats, trial.policy.head == "flow"
    return [
        ("evaluation", trial.evaluations[0].benchmark, episodes, episodes, "A.2.1"),
        ("plays of each episode", str(repeats), several if noisy else "1", "one", "A.3"),
        (
            "executed of a chunk",
            ", ".join(str(recipe.execute) for recipe in trial.evaluations),
            "all, half, one; the best is reported",
            {"calvin": "10, hard-coded", "bridge": "4, 2, 1", "libero": "4, 2"}[preset],
            "3.3; evaluation scripts",
        ),
        (
            "reported",
            "every checkpoint and mode",
            "the best of them",
            "the best, compared by hand",
            "A.2.2; eval/",
        ),
    ]

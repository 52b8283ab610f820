"""Finishing a decoder: what is recorded and measured on the way, and what is kept of it."""

from typing import Any

from facevae.adversary import FinishStage, batch_size
from facevae.batches import Batches
from facevae.bundle import Bundle
from facevae.config import STAGES
from facevae.fast import Warn
from facevae.model import VAE
from facevae.perceptual import load_perceptual
from facevae.prior import Prior
from facevae.runs import Run, weights_digest
from facevae.snapshots import NUM_PROBES, draw_progress, measure
from facevae.steps import Fitting, Work, check_finite, fit, last_figures, skipped_words


def finish(work: Work, bundle: Bundle) -> None:
    """Finish the decoder, in place, with held-out figures and pictures where epochs end."""
    fitting = _FinishFitting(work, bundle)
    fit(work, fitting)
    fitting.tell(fitting.stage.budget.num_steps - 1)


def finish_stage(run: Run, vae: VAE, prior: Prior, warn: Warn = lambda _: None) -> FinishStage:
    """Its steps, from a fitted model on, both parts of which are on the run's device."""
    perceptual = load_perceptual(run.device) if run.train.perceptual else None
    batches = Batches(run.faces, batch_size(run.train), run.train.seed, run.device)
    return FinishStage(vae, prior, batches, run.train, perceptual, warn)


class _FinishFitting(Fitting):
    """What finishing a decoder has of its own; see `steps.Fitting`."""

    name, stage_name, event = "finish", "finish", "finish"
    task = "Finishing"
    advice = "go on without it: --stages vae,prior"
    too_few = "has been finished for {epochs} epochs; --finish-epochs cannot be fewer"
    stage: FinishStage

    def __init__(self, work: Work, bundle: Bundle) -> None:
        self._work, self._bundle = work, bundle
        train = work.run.train
        fitted = weights_digest(bundle.vae), weights_digest(bundle.prior)
        asked = [str(train.finish_weight), *["LPIPS"] * train.perceptual]
        self.key = " ".join(
            [
                *fitted,
                *asked,
                "judged apart and by features, coarse layers at rest, two blocks, mends",
            ]
        )
        self.prior_config = bundle.prior_config
        self.stage = finish_stage(work.run, bundle.vae, bundle.prior, work.listener.notice)
        self.size = self.stage.batches.size

    def ends_epoch(self, index: int) -> bool:
        """Whether a pass over the faces ends."""
        return self.stage.batches.ends_epoch(index)

    def measure(self, index: int) -> dict[str, Any]:
        """Figures and pictures of the model, which is saved as it is meanwhile."""
        run, folder = self._work.run, self._work.folder
        is_last = index + 1 == self.stage.budget.num_steps
        figures = measure(run, self._bundle.vae, None if is_last else NUM_PROBES)
        check_finite(folder, figures, self.advice)
        self.tell(index)
        self._work.save_progress(self._bundle)
        epoch = self.stage.batches.epoch(index)
        pictures = draw_progress(run, folder, self._bundle, epoch, "finish-")
        return {"epoch": epoch, **figures, **pictures}

    def tell(self, index: int) -> None:
        """Keep with the model how it was finished up to step `index`."""
        train, provenance = self._work.run.train, self._bundle.provenance
        provenance["finish"] = {
            "epochs": self.stage.batches.epochs(index),
            "weight": train.finish_weight,
            "perceptual": train.perceptual,
        }
        provenance["stage_seconds"] = {
            **provenance.get("stage_seconds", {}),
            "finish": train.seconds_for("finish"),
        }
        settings = provenance["train"]
        gone_through = {*settings.get("stages", ("vae", "prior")), *train.stages}
        settings["stages"] = [stage for stage in STAGES if stage in gone_through]
        settings |= {"finish_epochs": train.finish_epochs, "finish_weight": train.finish_weight}
        settings["perceptual"] = train.perceptual

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures in a few words."""
        last, measured = last_figures(records, self.event), last_figures(records, "epoch")
        if not last:
            return ""
        parts = [
            f"made {last['generator_loss']:.2f} against {last['discriminator_loss']:.2f}",
            *skipped_words(last["skipped_steps"]),
            f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
            f"sharpness {measured['sharpness']:.2f}" if measured else "",
            f"{last['images_per_second']:,.0f} images/s",
        ]
        return " · ".join(filter(None, parts))
